"""Observed values: one `Observation` per evaluation, and a store of the latest value of every metric."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from accmt.rules.codec import APART, INLINE, SPARSE, Count, Jsonable
from accmt.rules.progress import Progress

TRAIN_LOSS = "train_loss"
VALID_LOSS = "valid_loss"
ONLY_DATASET = "0"
"""The key of a validation dataset that was given alone, in rules and on the disk."""

_T = TypeVar("_T")

Values = Mapping[str, Mapping[str, float]]
Replicates = Mapping[str, Mapping[str, tuple[float, ...]]]
"""Dataset -> metric -> its value on each resample of the dataset, rounded to 6 significant digits."""


def dataset_name(key: str, datasets: Collection[str]) -> str:
    """Return the name of a dataset for people: `valid` for one that was given alone, instead of its key."""
    return "valid" if key == ONLY_DATASET and len(datasets) == 1 else key


@dataclass(frozen=True, slots=True, eq=False)
class Observation(Jsonable):
    """Results of one evaluation.

    Attributes:
        progress: The counters at that moment; `progress.evaluation` is its number.
        values: Dataset -> metric -> value. Empty without validation data.
        train_loss: Mean training loss since the previous evaluation; NaN if no step was done since.
        initial: Whether it was done before the first step; it is recorded, but decides nothing.
        training: Training metric -> mean since the previous evaluation; NaN if it was not logged since.
        replicates: Dataset -> metric -> replicates, of those that the rules need; recorded as `RecordedReplicates`.
    """

    progress: Progress = field(metadata=INLINE)
    values: Values = field(default_factory=dict)
    train_loss: float = float("nan")
    initial: bool = field(default=False, metadata=SPARSE)
    training: Mapping[str, float] = field(default_factory=dict, metadata=SPARSE)
    replicates: Replicates = field(default_factory=dict, metadata=APART)


@dataclass(frozen=True, slots=True, eq=False)
class RecordedReplicates(Jsonable):
    """Replicates of one evaluation, as they are recorded beside the history: most trainings have none."""

    evaluation: Count
    replicates: Replicates


def with_replicates(
    observations: Iterable[Observation], recorded: Iterable[RecordedReplicates]
) -> tuple[Observation, ...]:
    """Return the observations with their recorded replicates."""
    by_evaluation = {record.evaluation: record.replicates for record in recorded}

    def complete(observation: Observation) -> Observation:
        number = observation.progress.evaluation
        if observation.initial or number not in by_evaluation:
            return observation
        return replace(observation, replicates=by_evaluation[number])

    return tuple(map(complete, observations))


@dataclass(slots=True, eq=False)
class MetricsStore(Jsonable):
    """Latest value of every metric on every dataset. Observations are added, never removed.

    Attributes:
        latest: Metric -> dataset -> its latest value.
        train_loss, training: Those of the last observation.
        is_empty: True before the first observation.
        replicates: Metric -> dataset -> replicates of its latest value.
    """

    latest: dict[str, dict[str, float]] = field(default_factory=dict)
    train_loss: float = float("nan")
    is_empty: bool = True
    training: Mapping[str, float] = field(default_factory=dict, metadata=SPARSE)
    replicates: dict[str, dict[str, tuple[float, ...]]] = field(default_factory=dict, metadata=SPARSE)

    def record(self, observation: Observation) -> None:
        self.is_empty = False
        for dataset, metrics in observation.values.items():
            for metric, value in metrics.items():
                self.latest.setdefault(metric, {})[dataset] = value
                self.replicates.get(metric, {}).pop(dataset, None)
        for dataset, replicates in observation.replicates.items():
            for metric, values in replicates.items():
                self.replicates.setdefault(metric, {})[dataset] = tuple(values)
        self.train_loss, self.training = observation.train_loss, dict(observation.training)

    def restricted(self, reported: Mapping[str, Collection[str]]) -> MetricsStore:
        """Return the store without the values of metrics and datasets that are no longer reported."""
        return replace(self, latest=_only(reported, self.latest), replicates=_only(reported, self.replicates))

    def on_resamples(self) -> Iterator[MetricsStore]:
        """Yield a store for each resample of the datasets, with the replicates in place of the values.

        Of a metric with replicates on some of its datasets only, the others are NaN.
        """
        columns = {
            metric: {dataset: replicates.get(dataset, ()) for dataset in self.latest.get(metric, ())}
            for metric, replicates in self.replicates.items()
        }
        count = max((len(values) for table in columns.values() for values in table.values()), default=0)
        for r in range(count):
            latest = {
                metric: {dataset: values[r] if r < len(values) else math.nan for dataset, values in table.items()}
                for metric, table in columns.items()
            }
            yield MetricsStore(latest, is_empty=False)

    def on(self, metric: str) -> Mapping[str, float]:
        """Return dataset -> latest value of a metric; empty if it was never reported."""
        return self.latest.get(metric, _NOTHING)


_NOTHING: Mapping[str, float] = {}


def _only(reported: Mapping[str, Collection[str]], table: Mapping[str, Mapping[str, _T]]) -> dict[str, dict[str, _T]]:
    return {
        metric: {dataset: value for dataset, value in values.items() if dataset in reported[metric]}
        for metric, values in table.items()
        if metric in reported
    }

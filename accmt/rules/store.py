"""Observed values: one `Observation` per evaluation, and a store of the latest value of every metric."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from accmt.rules.jsonable import EqualAsJson, from_text, to_text
from accmt.rules.progress import Progress

TRAIN_LOSS = "train_loss"
VALID_LOSS = "valid_loss"

Values = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True, eq=False)
class Observation(EqualAsJson):
    """Results of one evaluation.

    Attributes:
        progress: The counters at that moment; `progress.evaluation` is its number.
        values: Dataset -> metric -> value. Empty without validation data.
        train_loss: Mean training loss since the previous evaluation; NaN if no step was done since.
        initial: Whether it was done before the first step; it is recorded, but decides nothing.
        training: Training metric -> mean since the previous evaluation; NaN if it was not logged since.
    """

    progress: Progress
    values: Values = field(default_factory=dict)
    train_loss: float = float("nan")
    initial: bool = False
    training: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        values = {key: {m: to_text(v) for m, v in metrics.items()} for key, metrics in self.values.items()}
        data = {**self.progress.to_json(), "train_loss": to_text(self.train_loss), "values": values}
        if self.training:
            data["training"] = {name: to_text(value) for name, value in self.training.items()}
        return {**data, "initial": True} if self.initial else data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Observation:
        counters = {name: data[name] for name in Progress.__dataclass_fields__}
        values = {key: {m: from_text(v) for m, v in metrics.items()} for key, metrics in data["values"].items()}
        training = {name: from_text(value) for name, value in data.get("training", {}).items()}
        return cls(Progress(**counters), values, from_text(data["train_loss"]), data.get("initial", False), training)


class MetricsStore:
    """Latest value of every metric on every dataset. Observations are added, never removed."""

    def __init__(self) -> None:
        self._latest: dict[str, dict[str, float]] = {}
        self.train_loss = float("nan")
        self.training: Mapping[str, float] = {}
        self.is_empty = True

    def record(self, observation: Observation) -> None:
        self.is_empty = False
        for dataset, metrics in observation.values.items():
            for metric, value in metrics.items():
                self._latest.setdefault(metric, {})[dataset] = value
        self.train_loss, self.training = observation.train_loss, dict(observation.training)

    def restricted(self, reported: Mapping[str, Collection[str]]) -> MetricsStore:
        """Return the store without the values of metrics and datasets that are no longer reported."""
        store = MetricsStore()
        store._latest = {
            metric: {dataset: value for dataset, value in values.items() if dataset in reported[metric]}
            for metric, values in self._latest.items()
            if metric in reported
        }
        store.train_loss, store.training, store.is_empty = self.train_loss, self.training, self.is_empty
        return store

    def on(self, metric: str) -> Mapping[str, float]:
        """Return dataset -> latest value of a metric; empty if it was never reported."""
        return self._latest.get(metric, _NOTHING)

    def to_json(self) -> dict[str, Any]:
        latest = {m: {d: to_text(v) for d, v in values.items()} for m, values in self._latest.items()}
        data: dict[str, Any] = {"latest": latest, "train_loss": to_text(self.train_loss), "is_empty": self.is_empty}
        if self.training:
            data["training"] = {name: to_text(value) for name, value in self.training.items()}
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MetricsStore:
        store = cls()
        store._latest = {m: {d: from_text(v) for d, v in values.items()} for m, values in data["latest"].items()}
        store.train_loss = from_text(data["train_loss"])
        store.training = {name: from_text(value) for name, value in data.get("training", {}).items()}
        store.is_empty = bool(data["is_empty"])
        return store


_NOTHING: Mapping[str, float] = {}

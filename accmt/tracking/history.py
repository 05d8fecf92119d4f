"""History of a training: the values of all its evaluations, for people and notebooks. Does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from accmt.files.paths import resolved
from accmt.html_tables import Cell, html_table
from accmt.rules import Decision, Observation, RecordedReplicates, Stop, with_replicates
from accmt.rules.errors import numbered
from accmt.rules.store import TRAIN_LOSS, dataset_name
from accmt.tracking.journal import DECISIONS, HISTORY, REPLICATES, read

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

_T = TypeVar("_T")


class HistoryValue(NamedTuple):
    """A value after so many steps and completed epochs; `dataset` is None for the training data (`train_loss`),
    and "valid" for a validation dataset that was given alone, whose key, as in `observations` and in rules, is "0"."""

    step: int
    epoch: int
    dataset: str | None
    metric: str
    value: float


@dataclass(frozen=True, eq=False, repr=False)
class TrainingHistory:
    """The values of all evaluations of a training, including those of runs before a resume.

    Its length is the number of evaluations; it iterates over all values, as (step, epoch, dataset, metric, value).

    Attributes:
        observations: The evaluations, including one before the first step, each with all of its values.
        stop: Why the training was stopped; None if it was not.
        savings: Rule -> the steps at which it saved a model.
    """

    observations: tuple[Observation, ...]
    stop: Stop | None = None
    savings: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def load(cls, model_path: str | Path) -> TrainingHistory:
        """Read the history of a training, which may still run, from its folder.

        Args:
            model_path: The folder of the training.

        Raises:
            FileNotFoundError: The folder does not contain a training.
            ValueError: A line of its history is damaged.
        """
        folder = resolved(model_path)
        if not (folder / HISTORY).is_file():
            raise FileNotFoundError(f"{folder} is not the folder of a training: it has no {HISTORY}")
        return cls.of(observations_in(folder), entries_of(folder / DECISIONS, Decision.from_json, "a decision"))

    @classmethod
    def of(cls, observations: Sequence[Observation], decisions: Sequence[Decision]) -> TrainingHistory:
        """Return the history of a training with these evaluations and decisions."""
        last = stop_of(decisions)
        savings: dict[str, tuple[int, ...]] = {}
        for verdict, step in ((verdict, one.progress.step) for one in decisions for verdict in one.saved):
            savings[verdict.rule] = (*savings.get(verdict.rule, ()), step)
        return cls(tuple(observations), None if last is None else last.stop, savings)

    def __len__(self) -> int:
        return len(self.observations)

    def __iter__(self) -> Iterator[HistoryValue]:
        for one in self.observations:
            step, epoch = one.progress.step, one.progress.epoch
            if not one.initial:
                yield HistoryValue(step, epoch, None, TRAIN_LOSS, one.train_loss)
            for key, values in ((None, one.training), *one.values.items()):
                dataset = None if key is None else dataset_name(key, one.values)
                for metric, value in values.items():
                    yield HistoryValue(step, epoch, dataset, metric, value)

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table in long form, with the columns step, epoch, dataset, metric and value.

        `dataset` is missing (NaN) for values of the training data.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        if find_spec("pandas") is None:
            raise ModuleNotFoundError("to_pandas needs pandas, which is not installed: pip install pandas")
        import pandas

        return pandas.DataFrame(list(self), columns=list(HistoryValue._fields))

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the values over the steps: axes for each metric, a line for each dataset, and marks where rules saved.

        Args:
            path: The file to write, such as "history.png"; None for none.

        Returns:
            The figure, which a notebook shows.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
            ValueError: There is no evaluation yet, or matplotlib does not know the format of the file.
        """
        if find_spec("matplotlib") is None:
            raise ModuleNotFoundError("plot needs matplotlib, which is not installed: pip install matplotlib")
        if not self.observations:
            raise ValueError("there is nothing to plot: the training has no evaluation yet")
        from accmt.tracking.plot import draw_history

        figure = draw_history(list(self), self.savings)
        if path is not None:
            figure.savefig(resolved(path))
        return figure

    def _repr_html_(self) -> str:
        rows: dict[tuple[int, int], dict[str, Cell]] = {}
        for step, epoch, dataset, metric, value in self:
            rows.setdefault((step, epoch), {})[metric if dataset is None else f"{metric}@{dataset}"] = value
        for (step, _), row in rows.items():
            row["saved by"] = ", ".join(rule for rule, steps in self.savings.items() if step in steps)
        names = sorted({name: None for row in rows.values() for name in row}, key=lambda name: name == "saved by")
        cells = [(*place, *map(row.get, names)) for place, row in rows.items()]
        return html_table(repr(self), ["step", "epoch", *names], cells)

    def __repr__(self) -> str:
        epochs = self.observations[-1].progress.epoch if self.observations else 0
        parts = [numbered(len(self), "evaluation"), numbered(epochs, "epoch")]
        parts += [] if self.stop is None else [f"stopped: {self.stop.reason}"]
        return f"TrainingHistory({', '.join(parts)})"


def stop_of(decisions: Sequence[Decision]) -> Decision | None:
    """Return the decision that stopped the training, if one at its last step did; an evaluation may follow it."""
    last = [decision for decision in decisions if decision.progress.step == decisions[-1].progress.step]
    return next((decision for decision in reversed(last) if decision.stop is not None), None)


def observations_in(folder: Path) -> tuple[Observation, ...]:
    """Read the evaluations of a training, with their replicates if it has any.

    Raises:
        ValueError: A line is damaged; the message says which.
    """
    recorded = entries_of(folder / REPLICATES, RecordedReplicates.from_json, "a record of replicates")
    return with_replicates(entries_of(folder / HISTORY, Observation.from_json, "an observation"), recorded)


def entries_of(path: Path, make: Callable[[Mapping[str, Any]], _T], what: str) -> tuple[_T, ...]:
    """Read all entries of a journal; none if there is no file.

    Raises:
        ValueError: A line is damaged; the message says which.
    """
    made = []
    for number, entry in enumerate(read(path), 1):
        try:
            made.append(make(entry))
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not {what}: {error}") from None
    return tuple(made)

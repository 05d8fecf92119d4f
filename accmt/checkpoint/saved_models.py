"""Models that rules saved, as they are described on the disk; `model_store` writes them. Does not import torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from accmt.files.foreign import is_file, is_folder
from accmt.files.json_io import read_json
from accmt.files.paths import shortened
from accmt.html_tables import html_table
from accmt.rules import KeptModel, Verdict
from accmt.rules import reserved_names as names
from accmt.rules.codec import SPARSE, Count, Jsonable

DESCRIPTION = names.SAVING
INDEX = names.SAVINGS

AVERAGE = "average"
"""The folder of the average of the models that a rule keeps, if it is better than they are."""
AVERAGE_RECORD = "average.json"

KEPT = re.compile(rf"evaluation-([0-9]{{4,}})-step-[0-9]+|{AVERAGE}")


@dataclass(frozen=True, slots=True)
class ModelDescription(Jsonable):
    """Content of the file that describes a saved model.

    Attributes:
        rule, text: The name and the text of the rule that chose it.
        values: Objective -> value when it was saved.
        step: The optimizer step, counted from the start of the training.
        epoch: Completed epochs.
        evaluation: The number of the evaluation.
        held_out: Held-out dataset -> metric -> value, once the training has ended.
        average_of: The folders of the models that it is the average of; none if it is not an average.
    """

    schema: Literal[1]
    rule: str
    text: str
    values: Mapping[str, float]
    step: Count
    epoch: Count
    evaluation: Count
    held_out: Mapping[str, Mapping[str, float]] = field(default_factory=dict, metadata=SPARSE)
    average_of: tuple[str, ...] = field(default=(), metadata=SPARSE)


@dataclass(frozen=True, slots=True)
class AverageRecord(Jsonable):
    """Content of the file that says what became of the average of the models that a rule keeps.

    Attributes:
        models: These models.
        verdict: The verdict of the rule on their average.
        values: Dataset -> metric -> value of the average.
    """

    schema: Literal[1]
    models: tuple[KeptModel, ...]
    verdict: Verdict
    values: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class KeptList(Jsonable):
    """Content of the list of the models that a rule keeps: the names of their folders, best first."""

    schema: Literal[1]
    best_first: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SavedModel:
    """A saved model.

    Attributes:
        rule: The name of the rule that chose it.
        values: Objective -> value when it was saved.
        step: The optimizer step, counted from the start of the training.
        epoch: Completed epochs.
        folder: The folder of its files.
        held_out: Held-out dataset -> metric -> value, from the evaluation after the training; empty before.
        average_of: The folders of the models that it is the average of; none if it is not an average.
    """

    rule: str
    values: Mapping[str, float]
    step: int
    epoch: int
    folder: Path
    held_out: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    average_of: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> SavedModel:
        """Read the description of the saved model in a folder.

        Raises:
            FileNotFoundError: There is none.
            DamagedFile: Its description cannot be read.
        """
        about = read_json(folder / DESCRIPTION, ModelDescription)
        return cls(about.rule, about.values, about.step, about.epoch, folder, about.held_out, about.average_of)

    @property
    def measured(self) -> dict[str, float]:
        """The held-out values by the names that metrics have in rules, such as "accuracy@test"."""
        return measured(self.held_out)

    def _repr_html_(self) -> str:
        rows = [(name, f"{value:.6g}") for name, value in self.values.items()]
        rows += [(f"{name} (held out)", f"{value:.6g}") for name, value in self.measured.items()]
        rows += [("step", str(self.step)), ("epoch", str(self.epoch)), ("folder", str(shortened(self.folder)))]
        return html_table(f"SavedModel of {self.rule}", (), rows)


def measured(held_out: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return held-out values by the names that metrics have in rules, such as "accuracy@test"."""
    return {f"{name}@{key}": value for key, values in held_out.items() for name, value in values.items()}


def best_in(folder: Path) -> SavedModel | None:
    """Return the model in the folder of a rule, the best if it keeps several; None if there is none.

    Raises:
        DamagedFile: Its description cannot be read.
    """
    place = place_of_best(folder)
    return None if place is None else SavedModel.read(place)


def place_of_best(folder: Path) -> Path | None:
    """Return the folder of the best model of a rule; None if there is none.

    Raises:
        DamagedFile: The list of its models cannot be read.
    """
    names = filter(KEPT.fullmatch, listed_in(folder))
    place = next((path for name in names if is_folder(path := folder / name)), folder)
    return place if is_file(place / DESCRIPTION) else None


def listed_in(folder: Path) -> tuple[str, ...]:
    """List the names of the models that a rule keeps, best first; none if it keeps one, in the folder itself.

    Raises:
        DamagedFile: The list cannot be read.
    """
    if not is_file(folder / INDEX):
        return ()
    kept: KeptList = read_json(folder / INDEX, KeptList)
    return kept.best_first


def savings_in(model_path: Path) -> list[Path]:
    """List the folders of all rules that have saved a model."""
    return sorted(path for path in model_path.iterdir() if is_folder(path) and is_saving(path))


def is_saving(folder: Path) -> bool:
    """Return whether a folder holds models that a rule saved."""
    return is_file(folder / DESCRIPTION) or is_file(folder / INDEX)

"""What rules have saved, as it lies on the disk: the reading side of `savings`. It imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from accmt.checkpoint.strict import read_json
from accmt.rules.jsonable import from_text

DESCRIPTION = "saving.json"
INDEX = "index.json"
KEPT = re.compile(r"evaluation-([0-9]{4,})-step-[0-9]+")


@dataclass(frozen=True, slots=True)
class Saving:
    """A saved model.

    Attributes:
        rule: The name of the rule that chose it.
        values: Objective -> value when it was saved.
        step: The optimizer step, counted from the start of the training.
        epoch: Completed epochs.
        folder: Where its files lie.
    """

    rule: str
    values: Mapping[str, float]
    step: int
    epoch: int
    folder: Path

    @classmethod
    def read(cls, folder: Path) -> Saving:
        """The saving in a folder.

        Raises:
            FileNotFoundError: There is none.
        """
        data = read_json(folder / DESCRIPTION)
        values = {name: from_text(value) for name, value in data["values"].items()}
        return cls(data["rule"], values, data["step"], data["epoch"], folder)


def best_in(folder: Path) -> Saving | None:
    """The model in the folder of a rule, the best of them where it keeps several; None if there is none."""
    if (folder / INDEX).is_file():
        places = [folder / Path(name).name for name in read_json(folder / INDEX)["best_first"]]
        folder = next((place for place in places if place.is_dir()), folder)
    return Saving.read(folder) if (folder / DESCRIPTION).is_file() else None


def savings_in(model_path: Path) -> list[Path]:
    """The folders of all rules that have saved a model."""
    return sorted(path for path in model_path.iterdir() if path.is_dir() and is_saving(path))


def is_saving(folder: Path) -> bool:
    """Whether a folder holds models that a rule saved."""
    return (folder / DESCRIPTION).is_file() or (folder / INDEX).is_file()

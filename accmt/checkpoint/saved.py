"""What rules have saved, as it lies on the disk: the reading side of `savings`. It imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accmt.checkpoint.strict import read_json
from accmt.rules import names
from accmt.rules.jsonable import count_from, from_text

DESCRIPTION = names.SAVING
INDEX = names.SAVINGS

KEPT = re.compile(r"evaluation-([0-9]{4,})-step-[0-9]+")


class DamagedSaving(ValueError):
    """What describes a saved model cannot be read; the message names the file and says why."""


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
            DamagedSaving: Its description cannot be read.
        """
        with _described(folder / DESCRIPTION) as data:
            if type(data["rule"]) is not str:
                raise ValueError(f"its rule is {data['rule']!r:.100}")
            values = {name: from_text(value) for name, value in data["values"].items()}
            return cls(data["rule"], values, count_from(data["step"]), count_from(data["epoch"]), folder)


def best_in(folder: Path) -> Saving | None:
    """The model in the folder of a rule, the best of them where it keeps several; None if there is none.

    Raises:
        DamagedSaving: What describes it cannot be read.
    """
    place = place_of_best(folder)
    return None if place is None else Saving.read(place)


def place_of_best(folder: Path) -> Path | None:
    """Where the best model of a rule lies; None if there is none.

    Raises:
        DamagedSaving: The list of its models cannot be read.
    """
    place = next((path for name in listed_in(folder) if (path := folder / Path(name).name).is_dir()), folder)
    return place if (place / DESCRIPTION).is_file() else None


def listed_in(folder: Path) -> list[str]:
    """The names of the models that a rule keeps, best first; none where it keeps one, in the folder itself.

    Raises:
        DamagedSaving: The list cannot be read.
    """
    if not (folder / INDEX).is_file():
        return []
    with _described(folder / INDEX) as data:
        if not all(type(name) is str for name in data["best_first"]):
            raise ValueError("a name in it is no text")
        return list(data["best_first"])


def savings_in(model_path: Path) -> list[Path]:
    """The folders of all rules that have saved a model."""
    return sorted(path for path in model_path.iterdir() if path.is_dir() and is_saving(path))


def is_saving(folder: Path) -> bool:
    """Whether a folder holds models that a rule saved."""
    return (folder / DESCRIPTION).is_file() or (folder / INDEX).is_file()


@contextmanager
def _described(path: Path) -> Iterator[Any]:
    """Read a description, and tell of what is wrong with it, also of what the block finds."""
    try:
        yield read_json(path)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedSaving(f"{path} cannot be read: {type(error).__name__}: {error}") from None

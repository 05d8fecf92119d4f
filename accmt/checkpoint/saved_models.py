"""Reading of the models that rules saved, the counterpart of `savings`. Does not import torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accmt.files.foreign import NotAFile
from accmt.files.json_io import read_json
from accmt.rules import reserved_names as names
from accmt.rules.codec import count_from, from_text
from accmt.rules.printable import plain

DESCRIPTION = names.SAVING
INDEX = names.SAVINGS

KEPT = re.compile(r"evaluation-([0-9]{4,})-step-[0-9]+")


class DamagedSaving(ValueError):
    """The description of a saved model cannot be read; the message names the file and the reason."""


@dataclass(frozen=True, slots=True)
class Saving:
    """A saved model.

    Attributes:
        rule: The name of the rule that chose it.
        values: Objective -> value when it was saved.
        step: The optimizer step, counted from the start of the training.
        epoch: Completed epochs.
        folder: The folder of its files.
    """

    rule: str
    values: Mapping[str, float]
    step: int
    epoch: int
    folder: Path

    @classmethod
    def read(cls, folder: Path) -> Saving:
        """Read the description of the saved model in a folder.

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
    """Return the model in the folder of a rule, the best if it keeps several; None if there is none.

    Raises:
        DamagedSaving: Its description cannot be read.
    """
    place = place_of_best(folder)
    return None if place is None else Saving.read(place)


def place_of_best(folder: Path) -> Path | None:
    """Return the folder of the best model of a rule; None if there is none.

    Raises:
        DamagedSaving: The list of its models cannot be read.
    """
    names = filter(KEPT.fullmatch, listed_in(folder))
    place = next((path for name in names if _is_folder(path := folder / name)), folder)
    return place if _is_file(place / DESCRIPTION) else None


def listed_in(folder: Path) -> list[str]:
    """List the names of the models that a rule keeps, best first; none if it keeps one, in the folder itself.

    Raises:
        DamagedSaving: The list cannot be read.
    """
    if not _is_file(folder / INDEX):
        return []
    with _described(folder / INDEX) as data:
        if not all(type(name) is str for name in data["best_first"]):
            raise ValueError("a name in it is no text")
        return list(data["best_first"])


def savings_in(model_path: Path) -> list[Path]:
    """List the folders of all rules that have saved a model."""
    return sorted(path for path in model_path.iterdir() if _is_folder(path) and is_saving(path))


def is_saving(folder: Path) -> bool:
    """Return whether a folder holds models that a rule saved."""
    return _is_file(folder / DESCRIPTION) or _is_file(folder / INDEX)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


@contextmanager
def _described(path: Path) -> Iterator[Any]:
    """Read a description, and turn errors of reading and of the block into `DamagedSaving`."""
    try:
        yield read_json(path)
    except NotAFile as error:
        raise DamagedSaving(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedSaving(f"{path} cannot be read: {type(error).__name__}: {plain(error)}") from None

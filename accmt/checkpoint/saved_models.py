"""Reading of the models that rules saved, the counterpart of `model_store`. Does not import torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accmt.files.foreign import NotAFile, is_file, is_folder
from accmt.files.json_io import read_json
from accmt.rules import reserved_names as names
from accmt.rules.codec import count_from, from_text
from accmt.rules.printable import escaped

DESCRIPTION = names.SAVING
INDEX = names.SAVINGS

KEPT = re.compile(r"evaluation-([0-9]{4,})-step-[0-9]+")


class DamagedModel(ValueError):
    """The description of a saved model cannot be read; the message names the file and the reason."""


@dataclass(frozen=True, slots=True)
class SavedModel:
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
    def read(cls, folder: Path) -> SavedModel:
        """Read the description of the saved model in a folder.

        Raises:
            FileNotFoundError: There is none.
            DamagedModel: Its description cannot be read.
        """
        with _described(folder / DESCRIPTION) as data:
            if type(data["rule"]) is not str:
                raise ValueError(f"its rule is {data['rule']!r:.100}")
            values = {name: from_text(value) for name, value in data["values"].items()}
            return cls(data["rule"], values, count_from(data["step"]), count_from(data["epoch"]), folder)


def best_in(folder: Path) -> SavedModel | None:
    """Return the model in the folder of a rule, the best if it keeps several; None if there is none.

    Raises:
        DamagedModel: Its description cannot be read.
    """
    place = place_of_best(folder)
    return None if place is None else SavedModel.read(place)


def place_of_best(folder: Path) -> Path | None:
    """Return the folder of the best model of a rule; None if there is none.

    Raises:
        DamagedModel: The list of its models cannot be read.
    """
    names = filter(KEPT.fullmatch, listed_in(folder))
    place = next((path for name in names if is_folder(path := folder / name)), folder)
    return place if is_file(place / DESCRIPTION) else None


def listed_in(folder: Path) -> list[str]:
    """List the names of the models that a rule keeps, best first; none if it keeps one, in the folder itself.

    Raises:
        DamagedModel: The list cannot be read.
    """
    if not is_file(folder / INDEX):
        return []
    with _described(folder / INDEX) as data:
        if not all(type(name) is str for name in data["best_first"]):
            raise ValueError("a name in it is not a string")
        return list(data["best_first"])


def savings_in(model_path: Path) -> list[Path]:
    """List the folders of all rules that have saved a model."""
    return sorted(path for path in model_path.iterdir() if is_folder(path) and is_saving(path))


def is_saving(folder: Path) -> bool:
    """Return whether a folder holds models that a rule saved."""
    return is_file(folder / DESCRIPTION) or is_file(folder / INDEX)


@contextmanager
def _described(path: Path) -> Iterator[Any]:
    """Read a description, and turn errors of reading and of the block into `DamagedModel`."""
    try:
        yield read_json(path)
    except NotAFile as error:
        raise DamagedModel(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedModel(f"{path} cannot be read: {type(error).__name__}: {escaped(error)}") from None

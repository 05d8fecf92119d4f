"""Model savings: the models that rules chose, each in a folder that is always complete."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from accmt.checkpoint import publish
from accmt.checkpoint.aside import move_aside
from accmt.checkpoint.files import read_json, write_json
from accmt.checkpoint.weights import WeightsFormat, write_weights
from accmt.rules import Kept, SavingRule, Verdict
from accmt.rules.jsonable import from_text, to_text

DESCRIPTION = "saving.json"
INDEX = "index.json"

_KEPT = re.compile(r"evaluation-([0-9]{4,})-step-[0-9]+")


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


class Savings:
    """Writes what rules decide to save, below a `model_path`.

    Args:
        model_path: The folder above those of the rules.
        form: How weights are written.
        extras: Writes what belongs beside the weights (configuration, tokenizer) into a folder.
    """

    def __init__(
        self,
        model_path: Path,
        form: WeightsFormat,
        extras: Callable[[Path], None] = lambda folder: None,
    ) -> None:
        self._model_path = model_path
        self._form = form
        self._extras = extras

    def save(self, rule: SavingRule, verdict: Verdict, weights: Mapping[str, Tensor], epoch: int) -> None:
        """Publish the model that a verdict saves, in the place of the one that it replaces."""
        folder = self._model_path / rule.folder
        new = max(verdict.kept, key=lambda kept: kept.evaluation)
        target = folder if rule.keep == 1 else folder / new.folder
        if rule.keep > 1 and (folder / DESCRIPTION).is_file():
            publish.remove(folder)  # a rule of an earlier training that kept one model in the folder itself
        with publish.publishing(target) as temporary:
            self._extras(temporary)
            write_weights(temporary, weights, self._form)
            names = [str(objective) for objective in rule.saving.ranking.objectives]
            values = dict(zip(names, map(to_text, new.values), strict=True))
            write_json(
                temporary / DESCRIPTION,
                {
                    "schema": 1,
                    "rule": rule.name,
                    "text": str(rule.saving),
                    "values": values,
                    "step": new.step,
                    "epoch": epoch,
                    "evaluation": new.evaluation,
                },
            )
        if rule.keep > 1:
            _update_index(folder, verdict.kept)

    def those_there(self, rule: SavingRule, kept: tuple[Kept, ...], evaluation: int) -> tuple[Kept, ...]:
        """Those of the models that a rule keeps that lie where they belong.

        Models that made place for later ones, after this evaluation, are as if they were there: the training that
        continues from here saves the later ones again.
        """
        folder = self._model_path / rule.folder
        if rule.keep > 1 and (folder / INDEX).is_file():
            listed = (_KEPT.fullmatch(name) for name in read_json(folder / INDEX)["best_first"])
            if any(match is not None and int(match[1]) > evaluation for match in listed):
                return kept
        places = {entry: folder if rule.keep == 1 else folder / entry.folder for entry in kept}
        return tuple(entry for entry, place in places.items() if (place / DESCRIPTION).is_file())

    def put_aside(self, rule: SavingRule, step: int) -> Path | None:
        """Move away the models of an earlier rule of this name, before the new one replaces them; None without any.

        One that this rule saved after this step, before the training was cut short, is no such model.
        """
        folder, saved = self._model_path / rule.folder, self.best(rule)
        if saved is None or (saved.step > step and read_json(saved.folder / DESCRIPTION)["text"] == str(rule.saving)):
            return None
        return move_aside(self._model_path, [folder])

    def best(self, rule: SavingRule) -> Saving | None:
        """The best model that a rule has saved, as it lies on the disk; None if it has saved none."""
        return best_in(self._model_path / rule.folder)


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


def _update_index(folder: Path, kept: tuple[Kept, ...]) -> None:
    """List the kept models best first, then delete those that are kept no longer."""
    names = [entry.folder for entry in kept]
    temporary = folder / f"{publish.TEMPORARY}{INDEX}"
    write_json(temporary, {"schema": 1, "best_first": names})
    publish.describe([temporary])
    os.replace(temporary, folder / INDEX)
    publish.flush_directory(folder)
    for path in folder.iterdir():
        if _KEPT.fullmatch(path.name) and path.name not in names:
            publish.remove(path)

"""Folders of the models that rules saved: each is always complete, whoever writes its files. Does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from accmt.checkpoint import publish
from accmt.checkpoint.archive import move_to_archive
from accmt.checkpoint.saved_models import (
    AVERAGE_RECORD,
    DESCRIPTION,
    INDEX,
    KEPT,
    KeptList,
    ModelDescription,
    SavedModel,
    best_in,
    listed_in,
)
from accmt.files.durable import flush_directory, only_warned, replace_file
from accmt.files.json_io import DamagedFile, as_json, read_json, write_json
from accmt.rules import KeptModel, RuleEngine, SavingRule, Verdict


class ModelFolders:
    """The folders of rules below a `model_path`."""

    def __init__(self, model_path: Path) -> None:
        self._model_path = model_path

    def publish(self, rule: SavingRule, verdict: Verdict, epoch: int, write: Callable[[Path], None]) -> None:
        """Publish the model that a verdict saves, replacing the former one; `write` writes its files into a folder.

        It can be called from several threads. If it raises, the former model is still there.
        """
        folder = self._model_path / rule.folder
        new = max(verdict.kept, key=lambda kept: kept.evaluation)
        if rule.keep > 1 and (folder / DESCRIPTION).is_file():
            publish.remove(folder)  # of a rule of an earlier training that kept one model, in the folder itself
        publish_model(self.place_of(rule, new), write, description_of(rule, new, epoch))
        if rule.keep > 1:
            update_index(folder, [entry.folder for entry in verdict.kept])

    def settle(
        self, engine: RuleEngine, evaluation: int, step: int, on_main: Callable[[Callable[[], Any]], Any]
    ) -> list[str]:
        """Reconcile what rules remember with the models in their folders; return the differences, one line each.

        Args:
            engine: The engine, restored to an evaluation and a step.
            evaluation, step: Their numbers.
            on_main: Calls a function on the main process and returns the result on all.
        """
        notes: list[str] = []
        for rule in engine.rules.savings:
            kept = engine.states[rule.name].kept
            if engine.keep_only(rule.name, on_main(partial(self.existing, rule, kept, evaluation))):
                notes.append(f"models that '{rule.name}' saved are no longer in their folder: the rule forgets them")
            aside = None if kept else on_main(partial(self.archive_former, rule, step))
            if aside is not None:
                notes.append(f"the models that an earlier '{rule.name}' saved were moved to {aside}")
        return notes

    def existing(self, rule: SavingRule, kept: tuple[KeptModel, ...], evaluation: int) -> tuple[KeptModel, ...]:
        """Return the kept models of a rule that exist on the disk.

        Models that were replaced by those of evaluations after this one count as existing: the training that resumes
        from here saves the later ones again.
        """
        folder = self._model_path / rule.folder
        if rule.keep > 1 and folder.is_dir():
            found = (KEPT.fullmatch(path.name) for path in folder.iterdir())
            if any(match is not None and int(match[1] or 0) > evaluation for match in found):
                return kept
        there = tuple(entry for entry in kept if is_readable(SavedModel.read, self.place_of(rule, entry)))
        if rule.keep > 1 and there and not is_readable(listed_in, folder):
            update_index(folder, [entry.folder for entry in there])
        return there

    def place_of(self, rule: SavingRule, entry: KeptModel) -> Path:
        """Return the folder of a kept model."""
        folder = self._model_path / rule.folder
        return folder if rule.keep == 1 else folder / entry.folder

    def archive_former(self, rule: SavingRule, step: int) -> Path | None:
        """Archive the models of an earlier rule of this name, before the new one replaces them; None if there are none.

        A model that this rule saved after this step, before the training was interrupted, is not archived.
        """
        folder = self._model_path / rule.folder
        with suppress(DamagedFile):  # a damaged one is archived too, never overwritten
            saved = self.best(rule)
            if saved is None:
                return None
            if saved.step > step and read_json(saved.folder / DESCRIPTION, ModelDescription).text == str(rule.saving):
                return None
        return move_to_archive(self._model_path, [folder])

    def best(self, rule: SavingRule) -> SavedModel | None:
        """Return the best model that a rule has on the disk; None if it has none."""
        return best_in(self._model_path / rule.folder)


def publish_model(target: Path, write: Callable[[Path], None], about: ModelDescription) -> None:
    """Publish a model with its description, replacing the former one."""
    with publish.publishing(target) as temporary:
        write(temporary)
        write_json(temporary / DESCRIPTION, about.to_json())


def description_of(rule: SavingRule, model: KeptModel, epoch: int) -> ModelDescription:
    names = [str(objective) for objective in rule.saving.ranking.objectives]
    values = dict(zip(names, model.values, strict=True))
    return ModelDescription(1, rule.name, str(rule.saving), values, model.step, epoch, model.evaluation)


def is_readable(read: Callable[[Path], object], folder: Path) -> bool:
    """Return whether there is something in a folder that can be read."""
    try:
        return bool(read(folder))
    except (FileNotFoundError, NotADirectoryError, DamagedFile):
        return False


def update_index(folder: Path, names: Sequence[str]) -> None:
    """Write the list of kept models, best first, then delete the other models.

    The record of an average is deleted, too, because it was the average of the models of the former list.
    """
    (folder / AVERAGE_RECORD).unlink(missing_ok=True)
    replace_file(folder / INDEX, as_json(KeptList(1, tuple(names)).to_json()))
    with only_warned(f"{folder.name} is complete, but may not survive a power cut"):
        flush_directory(folder)
    with only_warned(f"{folder.name} is complete, but the models that it no longer keeps could not be deleted"):
        for path in folder.iterdir():
            if KEPT.fullmatch(path.name) and path.name not in names:
                publish.remove(path)

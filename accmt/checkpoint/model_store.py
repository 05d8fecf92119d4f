"""Saved models: those that rules chose, each in a folder that is always complete."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock

from torch import Tensor

from accmt.checkpoint import publish
from accmt.checkpoint.archive import move_to_archive
from accmt.checkpoint.disk_space import require_space
from accmt.checkpoint.saved_models import (
    DESCRIPTION,
    INDEX,
    KEPT,
    KeptList,
    ModelDescription,
    SavedModel,
    best_in,
    listed_in,
)
from accmt.checkpoint.tensor_files import in_main_memory, size_of, write_tensors
from accmt.checkpoint.weights import BESIDE, WeightsFormat, write_weights
from accmt.files.durable import flush_directory, only_warned, replace_file
from accmt.files.json_io import DamagedFile, as_json, read_json, write_json
from accmt.rules import KeptModel, SavingRule, Verdict

_AT_ONCE = 8


class ModelStore:
    """Writer of the models that rules decide to save, below a `model_path`.

    Args:
        model_path: The parent of the rules' folders.
        form: Format of the weights.
        extras: Writes the files next to the weights (configuration, tokenizer) into a folder.
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
        self._writing = Lock()

    def save(
        self,
        rule: SavingRule,
        verdict: Verdict,
        weights: Mapping[str, Tensor],
        epoch: int,
        beside: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Publish the model that a verdict saves, replacing the former one.

        `beside` are the weights of the networks that are trained alongside it. It can be called from several threads.
        """
        folder = self._model_path / rule.folder
        new = max(verdict.kept, key=lambda kept: kept.evaluation)
        target = folder if rule.keep == 1 else folder / new.folder
        if rule.keep > 1 and (folder / DESCRIPTION).is_file():
            publish.remove(folder)  # of a rule of an earlier training that kept one model, in the folder itself
        with publish.publishing(target) as temporary:
            with self._writing:  # one after the other: only the disk can flush several at once
                require_space(self._model_path, size_of({"weights": weights, "beside": beside or {}}))
                self._extras(temporary)
                write_weights(temporary, weights, self._form)
                if beside:
                    write_tensors(temporary / BESIDE, beside)
            names = [str(objective) for objective in rule.saving.ranking.objectives]
            values = dict(zip(names, new.values, strict=True))
            about = ModelDescription(1, rule.name, str(rule.saving), values, new.step, epoch, new.evaluation)
            write_json(temporary / DESCRIPTION, about.to_json())
        if rule.keep > 1:
            _update_index(folder, verdict.kept)

    def save_all(
        self,
        decided: Sequence[tuple[SavingRule, Verdict]],
        weights: Mapping[str, Tensor],
        epoch: int,
        beside: Mapping[str, Tensor],
    ) -> dict[str, BaseException]:
        """Do the same as `save` for several rules at once; return name of a rule -> why its model was not saved."""
        weights, beside = in_main_memory(weights), in_main_memory(beside)
        with ThreadPoolExecutor(_AT_ONCE, "save") as pool:
            saved = {
                rule.name: pool.submit(self.save, rule, verdict, weights, epoch, beside) for rule, verdict in decided
            }
        return {name: error for name, each in saved.items() if (error := each.exception()) is not None}

    def existing(self, rule: SavingRule, kept: tuple[KeptModel, ...], evaluation: int) -> tuple[KeptModel, ...]:
        """Return the kept models of a rule that exist on the disk.

        Models that were replaced by those of evaluations after this one count as existing: the training that resumes
        from here saves the later ones again.
        """
        folder = self._model_path / rule.folder
        if rule.keep > 1 and folder.is_dir():
            found = (KEPT.fullmatch(path.name) for path in folder.iterdir())
            if any(match is not None and int(match[1]) > evaluation for match in found):
                return kept
        there = tuple(entry for entry in kept if _is_readable(SavedModel.read, self.place_of(rule, entry)))
        if rule.keep > 1 and there and not _is_readable(listed_in, folder):
            _update_index(folder, there)
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


def _is_readable(read: Callable[[Path], object], folder: Path) -> bool:
    """Return whether there is something in a folder that can be read."""
    try:
        return bool(read(folder))
    except (FileNotFoundError, NotADirectoryError, DamagedFile):
        return False


def _update_index(folder: Path, kept: tuple[KeptModel, ...]) -> None:
    """Write the list of kept models, best first, then delete those that are no longer kept."""
    names = tuple(entry.folder for entry in kept)
    replace_file(folder / INDEX, as_json(KeptList(1, names).to_json()))
    with only_warned(f"{folder.name} is complete, but may not survive a power cut"):
        flush_directory(folder)
    with only_warned(f"{folder.name} is complete, but the models that it no longer keeps could not be deleted"):
        for path in folder.iterdir():
            if KEPT.fullmatch(path.name) and path.name not in names:
                publish.remove(path)

"""Saved models: those that rules chose, each in a folder that is always complete."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Lock

from torch import Tensor

from accmt.checkpoint import publish
from accmt.checkpoint.archive import move_to_archive
from accmt.checkpoint.disk_space import require_space
from accmt.checkpoint.saved_models import (
    AVERAGE,
    AVERAGE_RECORD,
    DESCRIPTION,
    INDEX,
    KEPT,
    AverageRecord,
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
from accmt.rules import KeptModel, Outcome, Progress, SavingRule, Verdict

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
        self._publish(target, weights, beside or {}, _description(rule, new, epoch))
        if rule.keep > 1:
            _update_index(folder, [entry.folder for entry in verdict.kept])

    def average_of(self, rule: SavingRule, kept: tuple[KeptModel, ...]) -> AverageRecord | None:
        """Return what became of the average of the models that a rule keeps; None if that is not known."""
        folder = self._model_path / rule.folder
        try:
            record: AverageRecord = read_json(folder / AVERAGE_RECORD, AverageRecord)
        except (FileNotFoundError, NotADirectoryError, DamagedFile):
            return None
        is_saved = record.verdict.outcome is Outcome.SAVED
        is_there = _is_readable(SavedModel.read, folder / AVERAGE) and AVERAGE in listed_in(folder)
        return record if record.models == kept and (is_there or not is_saved) else None

    def save_average(
        self, rule: SavingRule, record: AverageRecord, now: Progress, model: tuple[Mapping[str, Tensor], ...]
    ) -> None:
        """Publish the average of the models that a rule keeps if its verdict says so, and record the verdict.

        The record is written last: without it, the average is made again. `model` are the weights, and those beside it.
        """
        folder, names = self._model_path / rule.folder, [entry.folder for entry in record.models]
        if record.verdict.outcome is Outcome.SAVED:
            whole = KeptModel(record.verdict.values, now.evaluation, now.step)
            about = replace(_description(rule, whole, now.epoch), average_of=tuple(names))
            weights, beside = map(in_main_memory, model)
            self._publish(folder / AVERAGE, weights, beside, about)
            names.insert(0, AVERAGE)
        _update_index(folder, names)
        replace_file(folder / AVERAGE_RECORD, as_json(record.to_json()))

    def _publish(
        self, target: Path, weights: Mapping[str, Tensor], beside: Mapping[str, Tensor], about: ModelDescription
    ) -> None:
        with publish.publishing(target) as temporary:
            with self._writing:  # one after the other: only the disk can flush several at once
                require_space(self._model_path, size_of({"weights": weights, "beside": beside}))
                self._extras(temporary)
                write_weights(temporary, weights, self._form)
                if beside:
                    write_tensors(temporary / BESIDE, beside)
            write_json(temporary / DESCRIPTION, about.to_json())

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
            if any(match is not None and int(match[1] or 0) > evaluation for match in found):
                return kept
        there = tuple(entry for entry in kept if _is_readable(SavedModel.read, self.place_of(rule, entry)))
        if rule.keep > 1 and there and not _is_readable(listed_in, folder):
            _update_index(folder, [entry.folder for entry in there])
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


def _description(rule: SavingRule, model: KeptModel, epoch: int) -> ModelDescription:
    names = [str(objective) for objective in rule.saving.ranking.objectives]
    values = dict(zip(names, model.values, strict=True))
    return ModelDescription(1, rule.name, str(rule.saving), values, model.step, epoch, model.evaluation)


def _update_index(folder: Path, names: Sequence[str]) -> None:
    """Write the list of kept models, best first, then delete those that are no longer kept; also the record of an
    average, which was that of others."""
    (folder / AVERAGE_RECORD).unlink(missing_ok=True)
    replace_file(folder / INDEX, as_json(KeptList(1, tuple(names)).to_json()))
    with only_warned(f"{folder.name} is complete, but may not survive a power cut"):
        flush_directory(folder)
    with only_warned(f"{folder.name} is complete, but the models that it no longer keeps could not be deleted"):
        for path in folder.iterdir():
            if KEPT.fullmatch(path.name) and path.name not in names:
                publish.remove(path)

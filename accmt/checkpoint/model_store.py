"""Saved models: those that rules chose, each in a folder that is always complete."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock

from torch import Tensor

from accmt.checkpoint.disk_space import require_space
from accmt.checkpoint.model_folders import ModelFolders, description_of, is_readable, publish_model, update_index
from accmt.checkpoint.saved_models import AVERAGE, AVERAGE_RECORD, AverageRecord, SavedModel, listed_in
from accmt.checkpoint.tensor_files import in_main_memory, size_of, write_tensors
from accmt.checkpoint.weights import BESIDE, WeightsFormat, write_weights
from accmt.files.durable import replace_file
from accmt.files.json_io import DamagedFile, as_json, read_json
from accmt.rules import KeptModel, Outcome, SavingRule, Verdict

_AT_ONCE = 8


class ModelStore(ModelFolders):
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
        super().__init__(model_path)
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
        self.publish(rule, verdict, epoch, partial(self._write, weights, beside or {}))

    def average_of(self, rule: SavingRule, kept: tuple[KeptModel, ...]) -> AverageRecord | None:
        """Return what became of the average of the models that a rule keeps; None if that is not known."""
        folder = self._model_path / rule.folder
        try:
            record: AverageRecord = read_json(folder / AVERAGE_RECORD, AverageRecord)
        except (FileNotFoundError, NotADirectoryError, DamagedFile):
            return None
        is_saved = record.verdict.outcome is Outcome.SAVED
        is_there = is_readable(SavedModel.read, folder / AVERAGE) and AVERAGE in listed_in(folder)
        return record if record.models == kept and (is_there or not is_saved) else None

    def save_average(
        self,
        rule: SavingRule,
        record: AverageRecord,
        now: tuple[int, int, int],
        model: tuple[Mapping[str, Tensor], ...],
    ) -> None:
        """Publish the average of the models that a rule keeps if its verdict says so, and record the verdict.

        The record is written last: without it, the average is made again. `now` are the evaluation,
        the step and the epoch, `model` the weights and those beside it.
        """
        folder, names = self._model_path / rule.folder, [entry.folder for entry in record.models]
        if record.verdict.outcome is Outcome.SAVED:
            evaluation, step, epoch = now
            whole = KeptModel(record.verdict.values, evaluation, step)
            about = replace(description_of(rule, whole, epoch), average_of=tuple(names))
            weights, beside = map(in_main_memory, model)
            publish_model(folder / AVERAGE, partial(self._write, weights, beside), about)
            names.insert(0, AVERAGE)
        update_index(folder, names)
        replace_file(folder / AVERAGE_RECORD, as_json(record.to_json()))

    def _write(self, weights: Mapping[str, Tensor], beside: Mapping[str, Tensor], folder: Path) -> None:
        with self._writing:  # one after the other: only the disk can flush several at once
            require_space(self._model_path, size_of({"weights": weights, "beside": beside}))
            self._extras(folder)
            write_weights(folder, weights, self._form)
            if beside:
                write_tensors(folder / BESIDE, beside)

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

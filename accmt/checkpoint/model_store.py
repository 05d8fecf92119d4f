"""Saved models: those that rules chose, each in a folder that is always complete."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from shutil import copyfile, copytree, ignore_patterns
from threading import Thread
from typing import Any

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
from accmt.checkpoint.tensor_files import size_of, write_tensors
from accmt.checkpoint.weights import BESIDE, WeightsFormat, write_weights
from accmt.files.durable import flush_directory, only_warned, replace_file
from accmt.files.json_io import DamagedFile, as_json, read_json, write_json
from accmt.rules import KeptModel, SavingRule, Verdict

_NOT_COPIED = ignore_patterns(DESCRIPTION, publish.MANIFEST)


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
        self._deleting: Thread | None = None

    def save(
        self, rule: SavingRule, verdict: Verdict, weights: Mapping[str, Tensor], *args: Any, **kwargs: Any
    ) -> None:
        """Do the same as `save_all` for one rule, and raise what failed."""
        failures = self.save_all([(rule, verdict)], weights, *args, **kwargs)
        self.close()
        for error in failures.values():
            raise error

    def save_all(
        self,
        decided: Sequence[tuple[SavingRule, Verdict]],
        weights: Mapping[str, Tensor],
        epoch: int,
        beside: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Exception]:
        """Publish the model that verdicts save, each replacing the former one, which is deleted in the background.

        `beside` are the weights of the networks that are trained alongside it. Each rule has files of its own: the
        first ones are written, the others are copies.

        Returns:
            Name of a rule -> why its model could not be saved.
        """
        self.close()
        size, made = size_of({"weights": weights, "beside": beside or {}}), list[Path]()

        def write(rule: SavingRule, new: KeptModel, temporary: Path) -> None:
            require_space(self._model_path, size)
            if made:
                copytree(made[0], temporary, ignore=_NOT_COPIED, copy_function=copyfile, dirs_exist_ok=True)
            else:
                self._extras(temporary)
                write_weights(temporary, weights, self._form)
                if beside:
                    write_tensors(temporary / BESIDE, beside)
                made.append(temporary)
            names = [str(objective) for objective in rule.saving.ranking.objectives]
            values = dict(zip(names, new.values, strict=True))
            about = ModelDescription(1, rule.name, str(rule.saving), values, new.step, epoch, new.evaluation)
            write_json(temporary / DESCRIPTION, about.to_json())

        failures: dict[str, Exception] = {}
        targets: dict[Path, tuple[SavingRule, Verdict]] = {}
        writers: dict[Path, Callable[[Path], None]] = {}
        for rule, verdict in decided:
            new = max(verdict.kept, key=lambda kept: kept.evaluation)
            try:
                target = self._target(rule, new)
            except Exception as error:
                failures[rule.name] = error
                continue
            targets[target], writers[target] = (rule, verdict), partial(write, rule, new)
        failed, formers = publish.publish_all(writers)
        for target, (rule, verdict) in targets.items():
            try:
                if target in failed:
                    raise failed[target]
                if rule.keep > 1:
                    _update_index(self._model_path / rule.folder, verdict.kept)
            except Exception as error:
                failures[rule.name] = error
        self._deleting = Thread(target=publish.delete, args=(formers,), name="delete")
        self._deleting.start()
        return failures

    def close(self) -> None:
        """Wait until what was replaced is deleted."""
        if self._deleting is not None:
            self._deleting.join()

    def _target(self, rule: SavingRule, new: KeptModel) -> Path:
        folder = self._model_path / rule.folder
        if rule.keep > 1 and (folder / DESCRIPTION).is_file():
            publish.remove(folder)  # of a rule of an earlier training that kept one model, in the folder itself
        return folder if rule.keep == 1 else folder / new.folder

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
        places = {entry: folder if rule.keep == 1 else folder / entry.folder for entry in kept}
        there = tuple(entry for entry, place in places.items() if _is_readable(SavedModel.read, place))
        if rule.keep > 1 and there and not _is_readable(listed_in, folder):
            _update_index(folder, there)
        return there

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

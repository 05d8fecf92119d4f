"""Model savings: the models that rules chose, each in a folder that is always complete."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from accmt.checkpoint import publish
from accmt.checkpoint.files import identity_of, read_json, write_json, write_tensors
from accmt.rules import Kept, SavingRule, Verdict
from accmt.rules.jsonable import from_text, to_text

DESCRIPTION = "saving.json"
INDEX = "index.json"

_KEPT = re.compile(r"evaluation-[0-9]{4,}-step-[0-9]+")


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
        safe_serialization: Write safetensors instead of a file that `torch.load(weights_only=True)` reads.
        extras: Writes what belongs beside the weights (configuration, tokenizer) into a folder.
    """

    def __init__(
        self, model_path: Path, safe_serialization: bool, extras: Callable[[Path], None] = lambda folder: None
    ) -> None:
        self._model_path = model_path
        self._safe = safe_serialization
        self._extras = extras

    def save(self, rule: SavingRule, verdict: Verdict, weights: Mapping[str, Tensor], epoch: int) -> None:
        """Publish the model that a verdict saves, in the place of the one that it replaces."""
        folder = self._model_path / rule.folder
        new = max(verdict.kept, key=lambda kept: kept.evaluation)
        target = folder if rule.keep == 1 else folder / new.folder
        if rule.keep > 1 and (folder / DESCRIPTION).is_file():
            publish.remove(folder)  # a rule of an earlier training that kept one model in the folder itself
        with publish.publishing(target) as temporary:
            self._write(temporary, weights)
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

    def best(self, rule: SavingRule) -> Saving | None:
        """The best model that a rule has saved, as it lies on the disk; None if it has saved none."""
        folder = self._model_path / rule.folder
        if rule.keep > 1 and (folder / INDEX).is_file():
            folder = folder / Path(read_json(folder / INDEX)["best_first"][0]).name
        return Saving.read(folder) if (folder / DESCRIPTION).is_file() else None

    def _write(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        self._extras(folder)
        if self._safe:
            write_tensors(folder / "model.safetensors", weights)
        else:
            torch.save(_on_cpu(weights), folder / "pytorch_model.bin")


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


def _on_cpu(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The weights in main memory; tensors that are one stay one, and no tensor keeps more memory than its own."""
    storages: set[int] = set()
    copies: dict[tuple[object, ...], Tensor] = {}
    result: dict[str, Any] = {}
    for name, value in weights.items():
        if isinstance(value, Tensor):
            identity = identity_of(value) if value.layout is torch.strided else (name,)
            if identity not in copies:
                copies[identity] = _alone(value.detach().cpu(), storages)
            result[name] = copies[identity]
        else:
            result[name] = value
    return result


def _alone(tensor: Tensor, storages: set[int]) -> Tensor:
    """The tensor, or a copy where its storage holds more than it, or holds another tensor too.

    torch writes a storage as a whole, and none that is read as two dtypes.
    """
    if tensor.layout is not torch.strided:
        return tensor
    storage = tensor.untyped_storage()
    if storage.data_ptr() in storages or storage.nbytes() != tensor.nbytes:
        tensor = tensor.clone()
    storages.add(tensor.untyped_storage().data_ptr())
    return tensor

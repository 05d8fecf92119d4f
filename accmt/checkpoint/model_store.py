"""Saved models: those that rules chose, each in a folder that is always complete."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from torch import Tensor

from accmt.checkpoint.disk_space import require_space
from accmt.checkpoint.model_folders import ModelFolders
from accmt.checkpoint.tensor_files import in_main_memory, size_of, write_tensors
from accmt.checkpoint.weights import BESIDE, WeightsFormat, write_weights
from accmt.rules import SavingRule, Verdict

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

        def write(folder: Path) -> None:
            with self._writing:  # one after the other: only the disk can flush several at once
                require_space(self._model_path, size_of({"weights": weights, "beside": beside or {}}))
                self._extras(folder)
                write_weights(folder, weights, self._form)
                if beside:
                    write_tensors(folder / BESIDE, beside)

        self.publish(rule, verdict, epoch, write)

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

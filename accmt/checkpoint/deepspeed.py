"""The part of a checkpoint that only DeepSpeed can write, in its own format and folder.

DeepSpeed reads it by unpickling. So every file is scanned first, without executing anything, and rejected if it names
a global that DeepSpeed itself does not write.
"""

from __future__ import annotations

import copyreg
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch.serialization import get_unsafe_globals_in_checkpoint

from accmt.notices import without_information

FOLDER = "deepspeed"
_TAG = "state"

# Globals in DeepSpeed's files beyond those that torch deems safe: plain data, a buffer address, a loss scaler.
_HARMLESS = frozenset(
    {
        "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.utils.tensor_fragment.fragment_address",
    }
)


class UntrustedFile(RuntimeError):
    """Unpickling a checkpoint file would execute code that DeepSpeed does not write."""


class DeepSpeedState:
    """Model and optimizer of a DeepSpeed engine.

    Args:
        engine: The engine.
        trusts: Also read files with globals that DeepSpeed does not write.
    """

    def __init__(self, engine: Any, *, trusts: bool) -> None:
        self._engine = engine
        self._trusts = trusts

    @property
    def stage(self) -> int:
        """ZeRO stage: 0 shards nothing, 1 the optimizer state, 2 also gradients, 3 also parameters."""
        return int(self._engine.zero_optimization_stage())

    def shapes(self) -> dict[str, list[int]]:
        """Return name -> full (unsharded) shape of all weights."""
        model = self._engine.module
        named = {name: getattr(value, "ds_shape", value.shape) for name, value in model.named_parameters()}
        own = {name: value.shape for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
        return {name: list(shape) for name, shape in {**own, **named}.items()}

    def write(self, folder: Path) -> list[Path]:
        """Write the state into a folder and return the files of this process. Must be called on all processes."""
        with without_information(), _enums_by_value():
            self._engine.save_checkpoint(str(folder / FOLDER), tag=_TAG, save_latest=False)
        rank = PartialState().process_index
        if rank == 0:  # conversion scripts, which DeepSpeed's package has too
            for script in (folder / FOLDER).glob("*.py"):
                script.unlink()
        found = sorted((folder / FOLDER / _TAG).iterdir())
        return [path for path in found if (_rank_of(path) or 0) == rank]

    def load(self, folder: Path) -> None:
        """Load the state from a verified checkpoint.

        Raises:
            UntrustedFile: A file has globals that DeepSpeed does not write; nothing was loaded.
        """
        place = folder / FOLDER / _TAG
        if not self._trusts:
            check_files(place)
        with without_information():
            path, _ = self._engine.load_checkpoint(str(place.parent), tag=_TAG, load_lr_scheduler_states=False)
        if path is None:
            raise RuntimeError(f"DeepSpeed did not find its part of the checkpoint in {place}")


@contextmanager
def _enums_by_value() -> Iterator[None]:
    """Pickle DeepSpeed's enum by its value, as most versions of Python do: 3.11.0 to 3.11.2 would name `getattr`, which
    `check_files` rejects."""
    from deepspeed.runtime.zero.config import ZeroStageEnum

    copyreg.pickle(ZeroStageEnum, lambda stage: (ZeroStageEnum, (stage.value,)))
    try:
        yield
    finally:
        del copyreg.dispatch_table[ZeroStageEnum]


def check_files(folder: Path) -> None:
    """Scan all files of DeepSpeed for code that unpickling would execute.

    Raises:
        UntrustedFile: A file has globals that DeepSpeed does not write, or is not a DeepSpeed file.
    """
    for path in sorted(folder.iterdir()):
        try:
            named = set(get_unsafe_globals_in_checkpoint(path)) - _HARMLESS
        except Exception as error:
            raise UntrustedFile(f"{path} is not a file that DeepSpeed writes ({type(error).__name__})") from None
        if named:
            listed = ", ".join(sorted(named))
            raise UntrustedFile(
                f"{path} would execute {listed} when it is read: nothing was loaded. "
                f"If you know where it comes from, give trust_checkpoint=True."
            )


def _rank_of(path: Path) -> int | None:
    """Return the rank in the name of a file; None for files that only rank 0 writes."""
    words = path.stem.split("_")
    after = [words[i + 2] for i in range(len(words) - 2) if words[i : i + 2] == ["pp", "rank"]]
    return int(after[0]) if after and after[0].isdigit() else None


def mismatches(own: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    """List why an engine cannot resume from the state of another one, one line each.

    Args:
        own, saved: `stage` and `processes` of each engine.
    """
    lines = []
    if saved["stage"] != own["stage"]:
        lines.append(f"it was written with ZeRO stage {saved['stage']}, and this training uses stage {own['stage']}")
    if saved["processes"] != own["processes"]:
        lines.append(
            f"it was written by {saved['processes']} processes, and {own['processes']} cannot read it: continue with "
            f"the same number, or take the weights out of it with accmt weights and start a new training from them"
        )
    return lines

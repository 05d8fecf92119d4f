"""Writers of models for `Rules.save`. Only calling them imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accmt.rules.reserved_names import MANIFEST, SAVING, SAVINGS


def state_dict_of(model: Any, *, safe_serialization: bool = True) -> Callable[[Path], None]:
    """Return a function that writes weights as `accmt.load_best` reads them.

    Args:
        model: A module, whose wrappers (DDP, torch.compile) are left out; or a state dict, such as that of a sharded
            model, which all processes gather.
        safe_serialization: Write `model.safetensors`; else `pytorch_model.bin`.
    """

    def write(folder: Path) -> None:
        from accmt.checkpoint.weights import WeightsFormat, write_weights
        from accmt.distributed.weight_names import by_plain_name

        weights = model if isinstance(model, Mapping) else by_plain_name(model, model.state_dict())
        write_weights(folder, weights, WeightsFormat(safe_serialization))

    return write


def pretrained(*parts: Any) -> Callable[[Path], None]:
    """Return a function that calls `save_pretrained` of each part: a model (without wrappers), a tokenizer, ..."""

    def write(folder: Path) -> None:
        from torch.nn import Module

        from accmt.distributed.weight_names import unwrapped

        for part in parts:
            plain: Any = unwrapped(part) if isinstance(part, Module) else part
            plain.save_pretrained(folder)

    return write


def write_checked(write: Callable[[Path], object], folder: Path) -> None:
    """Call a function of the user that writes into a folder.

    Raises:
        ValueError: It wrote nothing, or a file that is written here.
    """
    write(folder)
    names = {path.name for path in folder.iterdir()}
    if not names:
        raise ValueError("write(folder) wrote nothing into its folder")
    if taken := names & {SAVING, SAVINGS, MANIFEST}:
        raise ValueError(f"write(folder) wrote {min(taken)}, which accmt writes itself: choose another name")

"""Short description of a batch, for the errors of steps that it does not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from accmt.rules.printable import shown

_LONGEST = 400
_MOST = 6
_DEEPEST = 3


def describe_batch(batch: Any) -> str:
    """Describe a batch by its structure, keys, types, dtypes and shapes, in one line: "{'ids': int64 (32, 128)}"."""
    text = shown(_described(batch, _DEEPEST))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _described(part: Any, depth: int) -> str:
    if isinstance(part, Tensor):
        device = "" if part.device.type == "cpu" else f" on {part.device}"
        return f"{str(part.dtype).removeprefix('torch.')} {tuple(part.shape)}{device}"
    name = type(part).__name__
    if hasattr(part, "shape") and hasattr(part, "dtype"):
        return f"{name} {part.dtype} {tuple(part.shape)}"
    if depth and isinstance(part, Mapping):
        return "{" + _listed(list(part.items()), lambda item: f"{item[0]!r}: {_described(item[1], depth - 1)}") + "}"
    if depth and isinstance(part, list | tuple):
        texts = _listed(part, lambda element: _described(element, depth - 1))
        return f"[{texts}]" if isinstance(part, list) else f"({texts})"
    return f"{name} of {len(part)}" if isinstance(part, str | bytes | list | tuple | Mapping) else name


def _listed(parts: Any, describe: Callable[[Any], str]) -> str:
    more = [f"{len(parts) - _MOST} more"] if len(parts) > _MOST else []
    return ", ".join([*map(describe, parts[:_MOST]), *more])

"""Short description of a batch, for the errors of steps that it does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from accmt.rules.printable import shown

_LONGEST, _MOST, _DEEPEST = 400, 6, 3


def describe_batch(batch: Any) -> str:
    """Describe a batch by its structure, keys, types, dtypes and shapes, in one line: "{'ids': int64 (32, 128)}"."""
    text = shown(_described(batch, _DEEPEST))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _described(part: Any, depth: int) -> str:
    if hasattr(part, "shape") and hasattr(part, "dtype"):
        device = str(getattr(part, "device", "cpu"))
        return f"{part.dtype} {tuple(part.shape)}".removeprefix("torch.") + (f" on {device}" if device != "cpu" else "")
    if not depth or not isinstance(part, Mapping | list | tuple):
        return type(part).__name__
    keys = [f"{key!r}: " for key in islice(part, _MOST)] if isinstance(part, Mapping) else [""] * _MOST
    values = part.values() if isinstance(part, Mapping) else part
    texts = [f"{key}{_described(value, depth - 1)}" for key, value in zip(keys, values, strict=False)]
    more = [f"{len(part) - _MOST} more"] if len(part) > _MOST else []
    begin, end = "{}" if isinstance(part, Mapping) else "[]" if isinstance(part, list) else "()"
    return begin + ", ".join(texts + more) + end

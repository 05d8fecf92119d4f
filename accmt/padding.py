"""Padding of the last dimension of tensors, for `AcceleratorModule.pad`: pure functions without state."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor, nn

from accmt.config.errors import must_be

Padded = Tensor | list[Tensor] | tuple[Tensor, ...]
Operation = Literal["stack", "cat"] | Callable[..., Any]

_PADDINGS = ("longest", "max_length")
_SIDES = ("right", "left")
_OPERATIONS: dict[str, Callable[..., Tensor]] = {"stack": torch.stack, "cat": torch.cat}


def pad(
    tensor: Tensor | list[Tensor] | tuple[Tensor, ...],
    value: float,
    padding: Literal["max_length", "longest"] | None = None,
    max_length: int | None = None,
    side: Literal["right", "left"] = "right",
    op: Operation | None = None,
) -> Any:
    """Pad the last dimension of one tensor, or of each tensor of a list or tuple, to a common length.

    Other dimensions stay as they are and may differ between tensors. The inputs are not changed.

    Args:
        tensor: A tensor of shape (..., length), or a list or tuple of such tensors.
        value: The padding value.
        padding: "longest" pads to the longest tensor of a list or tuple, "max_length" to `max_length`.
            By default "longest" for a list or tuple; a single tensor is always padded to `max_length`.
        max_length: The length of the last dimension afterwards. Ignored with "longest".
        side: The side to pad: after the values ("right") or before them ("left").
        op: Operation on the padded tensors of a list or tuple: "stack" along a new first dimension, "cat" along the
            first, or a function that receives the list or tuple.

    Returns:
        A tensor for a tensor, a list for a list, a tuple for a tuple; with `op`, its result.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: For an unknown name, a missing `max_length`, a tensor longer than `max_length` (nothing is
            truncated), or tensors whose shapes do not fit `op`.
    """
    single = isinstance(tensor, Tensor)
    tensors = _checked_tensors(tensor, value)
    chosen = _checked_padding(padding, single)
    _one_of("side", side, _SIDES, '"right" or "left"')
    _check_operation(op, single)
    length = _checked_length(max_length) if chosen == "max_length" else max((t.shape[-1] for t in tensors), default=0)
    padded = [_filled(t, value, length, side, "" if single else f"[{i}]") for i, t in enumerate(tensors)]
    if isinstance(tensor, Tensor):
        return padded[0]
    result = tuple(padded) if isinstance(tensor, tuple) else padded
    return result if op is None else _operated(op, result)


def _checked_tensors(given: object, value: object) -> Sequence[Tensor]:
    if not isinstance(given, Tensor | list | tuple):
        raise TypeError(f"pad: tensor {must_be('a tensor, or a list or tuple of tensors', given)}")
    if not isinstance(value, Real):
        raise TypeError(f"pad: value {must_be('a number', value)}")
    tensors = [given] if isinstance(given, Tensor) else given
    for index, item in enumerate(tensors):
        place = "tensor" if isinstance(given, Tensor) else f"tensor[{index}]"
        if not isinstance(item, Tensor):
            raise TypeError(f"pad: {place} {must_be('a tensor', item)}")
        if item.dim() == 0:
            raise ValueError(f"pad: {place} is a scalar and has no dimension to pad: give it one with unsqueeze(0)")
        if not _holds(item.dtype, float(value)):
            raise ValueError(f"pad: value is {value}, which {place} cannot hold: it is of {item.dtype}")
    return tensors


def _holds(dtype: torch.dtype, value: float) -> bool:
    """Return whether a dtype can represent the value; torch may silently round it or wrap it around."""
    if dtype == torch.bool:
        return value in (0, 1)
    if dtype.is_floating_point or dtype.is_complex:
        return not math.isfinite(value) or abs(value) <= torch.finfo(dtype).max
    limits = torch.iinfo(dtype)
    return limits.min <= value <= limits.max and value.is_integer()


def _checked_padding(padding: object, single: bool) -> str:
    if padding is None:
        return "max_length" if single else "longest"
    _one_of("padding", padding, _PADDINGS, '"longest", "max_length" or None')
    if single and padding == "longest":
        raise ValueError('pad: padding is "longest", and a single tensor can only be padded to a max_length')
    return str(padding)


def _checked_length(max_length: object) -> int:
    if max_length is None:
        raise ValueError('pad: max_length is missing. Give it, or a list or tuple of tensors with padding="longest"')
    if isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 0:
        raise ValueError(f"pad: max_length {must_be('a whole number from 0', max_length)}")
    return max_length


def _check_operation(op: object, single: bool) -> None:
    if op is None:
        return
    if not callable(op):
        _one_of("op", op, _OPERATIONS, '"stack", "cat", a function or None')
    if single:
        raise ValueError("pad: op is given with a single tensor; it is for the tensors of a list or tuple")


def _one_of(name: str, given: object, allowed: Collection[str], wanted: str) -> None:
    if not isinstance(given, str) or given not in allowed:
        raise ValueError(f"pad: {name} {must_be(wanted, given)}")


def _filled(tensor: Tensor, value: float, length: int, side: str, place: str) -> Tensor:
    missing = length - tensor.shape[-1]
    if missing < 0:
        raise ValueError(
            f"pad: tensor{place} has the length {tensor.shape[-1]}, which is more than max_length={length}: "
            f"cut it before, such as by tensor[..., :{length}]"
        )
    return nn.functional.pad(tensor, (missing, 0) if side == "left" else (0, missing), value=value)


def _operated(op: Operation, padded: Sequence[Tensor]) -> Any:
    if not isinstance(op, str):
        return op(padded)
    if not padded:
        raise ValueError(f'pad: there are no tensors for op="{op}"')
    # "cat" allows tensors to differ in the first dimension; "stack" allows no difference.
    first = 1 if op == "cat" else 0
    shapes = [tuple(t.shape) for t in padded]
    if any(len(shape) != len(shapes[0]) or shape[first:] != shapes[0][first:] for shape in shapes):
        listed = ", ".join(str(list(shape)) for shape in shapes)
        but = " but for the first dimension" if op == "cat" else ""
        raise ValueError(f'pad: op="{op}" needs tensors of one shape{but}; padded, they have the shapes {listed}')
    return _OPERATIONS[op](padded)

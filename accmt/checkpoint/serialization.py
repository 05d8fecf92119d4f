"""Serialization of state dicts as JSON and tensors, so that loading cannot execute code.

`pack` splits nested dicts, counters, lists, tuples, numbers, strings, None, dtypes, tensors, NumPy arrays and NumPy
numbers into a JSON value and named tensors; `unpack` restores them exactly. Plain JSON stays as it is; everything else
is tagged: `{"$tuple": [...]}`, `{"$tensor": "state.0.exp_avg"}`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

_NUMBERS = frozenset(
    ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]
)


def pack(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """Convert a value to JSON and the tensors that it refers to.

    Raises:
        TypeError: A part of it is neither plain data nor a tensor.
    """
    tensors: dict[str, Tensor] = {}
    return _packed(value, "", tensors), tensors


def unpack(data: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Restore a value from the result of `pack`.

    Raises:
        ValueError: A tensor is missing, or the data was not made by `pack`.
    """
    if isinstance(data, list):
        return [unpack(item, tensors) for item in data]
    if not isinstance(data, dict):
        return data
    if len(data) == 1:
        [(tag, content)] = data.items()
        if tag in _TAGS:
            try:
                return _TAGS[tag](content, tensors)
            except (TypeError, AttributeError, KeyError, OverflowError):
                raise ValueError(f"not written by a checkpoint: {data!r:.100}") from None
    return {key: unpack(value, tensors) for key, value in data.items()}


def _packed(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:  # noqa: C901  (one branch per kind of data)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Tensor):
        return {"$tensor": _named(value, path, tensors)}
    if isinstance(value, np.ndarray):
        return {"$array": _named(_tensor_of(value, path), path, tensors)}
    if isinstance(value, np.generic) and value.dtype.name in _NUMBERS:
        return {"$number": [value.dtype.name, _packed(value.item(), path, tensors)]}
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": str(float(value))}
    if isinstance(value, torch.dtype):
        return {"$dtype": str(value).removeprefix("torch.")}
    if isinstance(value, tuple):
        return {"$tuple": [_packed(item, _join(path, i), tensors) for i, item in enumerate(value)]}
    if isinstance(value, list):
        return [_packed(item, _join(path, i), tensors) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        return _packed_mapping(value, path, tensors)
    raise _unwritable(value, path)


def _packed_mapping(value: Mapping[Any, Any], path: str, tensors: dict[str, Tensor]) -> Any:
    items = [(key, _packed(item, _join(path, key), tensors)) for key, item in value.items()]
    counts = isinstance(value, Counter)
    if not counts and all(type(key) is str for key in value) and not (len(items) == 1 and items[0][0] in _TAGS):
        return dict(items)
    return {"$counter" if counts else "$dict": [[_packed_key(key, path), item] for key, item in items]}


def _packed_key(key: Any, path: str) -> Any:
    tensors: dict[str, Tensor] = {}
    packed = _packed(key, path, tensors)
    if tensors:
        raise TypeError(f"cannot be written to a checkpoint: a key that is a {type(key).__name__} at '{path}'")
    return packed


def _named(tensor: Tensor, path: str, tensors: dict[str, Tensor]) -> str:
    """Add a tensor under its path; if two paths are spelled alike, the later one gets a number."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        raise _unwritable(tensor, path)
    wanted = name = path or "value"
    number = 1
    while name in tensors:
        number += 1
        name = f"{wanted}~{number}"
    tensors[name] = tensor
    return name


def _tensor_of(array: np.ndarray[Any, Any], path: str) -> Tensor:
    if array.dtype.name not in _NUMBERS:
        raise TypeError(f"cannot be written to a checkpoint: an array of {array.dtype} at '{path}'")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C", copy=True))


def _unwritable(value: Any, path: str) -> TypeError:
    return TypeError(f"cannot be written to a checkpoint: {type(value).__name__} at '{path}'")


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _tensor(content: Any, tensors: Mapping[str, Tensor]) -> Tensor:
    if content not in tensors:
        raise ValueError(f"the tensor '{content}' is missing")
    return tensors[content]


def _pairs(content: Any, tensors: Mapping[str, Tensor]) -> dict[Any, Any]:
    return {unpack(key, tensors): unpack(item, tensors) for key, item in content}


def _dtype(content: Any, tensors: Mapping[str, Tensor]) -> torch.dtype:
    dtype = getattr(torch, content)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"'{content}' is not a dtype")
    return dtype


def _number(content: Any, tensors: Mapping[str, Tensor]) -> Any:
    kind, number = content
    if kind not in _NUMBERS:
        raise KeyError(kind)
    return np.dtype(kind).type(unpack(number, tensors))


_TAGS: Mapping[str, Callable[[Any, Mapping[str, Tensor]], Any]] = {
    "$tensor": _tensor,
    "$array": lambda content, tensors: _tensor(content, tensors).numpy(),
    "$number": _number,
    "$float": lambda content, tensors: float(content),
    "$dtype": _dtype,
    "$tuple": lambda content, tensors: tuple(unpack(item, tensors) for item in content),
    "$dict": _pairs,
    "$counter": lambda content, tensors: Counter(_pairs(content, tensors)),
}

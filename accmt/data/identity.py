"""Identity of training data: type, length, and a digest of a few samples.

Samples are read from a copy of the dataset, so that files opened at the first sample are left for its workers to open;
random states are restored afterwards. If samples are random, or differ when read twice, only type and length are used.
"""

from __future__ import annotations

import copy
import hashlib
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import IterableDataset, Subset

from accmt.checkpoint.rng import random_state, untouched_random_state
from accmt.data.generators import Generators
from accmt.data.seeding import draw_from
from accmt.hyperparameters.catalogue import qualified_name
from accmt.hyperparameters.recorded import recorded

_READ = 8
_LONGEST = 2.0
_WRAPPED = ("dataset", "datasets")
_SAMPLED = ("indices", "weights")


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...


class _Unknown(Exception):
    """Error for a value that cannot be converted to bytes."""


def identity_of(dataset: Any, device: torch.device) -> dict[str, Any]:
    """Return what a checkpoint records of a dataset, as JSON.

    Args:
        dataset: A dataset; or a stream, from which no sample is read.
        device: The device of the process; its random state is not changed.
    """
    try:
        length = len(dataset)
    except TypeError:
        length = None
    known = {"type": qualified_name(type(dataset)), "length": length, "samples": None}
    if length and not isinstance(dataset, IterableDataset) and hasattr(dataset, "__getitem__"):
        known["samples"] = _digest_of(dataset, length, device)
    return known


def order_of(samplers: Sequence[Any]) -> list[list[Any]]:
    """Return what a checkpoint records of the samplers that decide the order: their types, and what they sample."""
    return [
        [
            qualified_name(type(sampler)),
            *(recorded(getattr(sampler, name)) for name in _SAMPLED if hasattr(sampler, name)),
            recorded(sampler) if isinstance(sampler, list | tuple | range) else None,
        ]
        for sampler in samplers
    ]


def difference(then: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> str:
    """Describe how data differ from those of a checkpoint; empty if no difference is known."""
    if then is None or now is None or then == now:
        return ""
    if then["type"] != now["type"]:
        return f"a {then['type']} then and a {now['type']} now"
    if then["length"] != now["length"]:
        return f"{then['length']} samples then and {now['length']} now"
    is_known = then["samples"] is not None and now["samples"] is not None
    return "as many samples, which are others" if is_known else ""


def _digest_of(dataset: Any, length: int, device: torch.device) -> str | None:
    """Compute a digest of samples from across the dataset; None if it would not be reproducible."""
    generators = Generators({"dataset": dataset})
    states = generators.states()
    with untouched_random_state(device):
        try:
            places = sorted({round(part * (length - 1) / (_READ - 1)) for part in range(_READ)})
            first, second = (_read(dataset, places, seed, device) for seed in (1, 2))
        except Exception:  # a dataset may raise anything: the training will raise it in its place
            return None
        finally:
            generators.restore(states)
    return first if first == second else None


def _read(dataset: Any, places: list[int], seed: int, device: torch.device) -> str | None:
    """Compute a digest of some samples; None if something was drawn at random, or reading took too long."""
    copied, digest = _copied(dataset), hashlib.blake2b(digest_size=16)
    generators = Generators({"dataset": copied})
    draw_from(seed)
    before = _bytes_of([random_state(device), generators.states()])
    started = time.monotonic()
    for place in places:
        _add(digest, copied[place])
        if time.monotonic() - started > _LONGEST:
            return None  # not worth the time
    if isinstance(dataset, Subset):
        _add(digest, list(dataset.indices))
    return digest.hexdigest() if _bytes_of([random_state(device), generators.states()]) == before else None


def _copied(dataset: Any) -> Any:
    """Copy a dataset and the datasets that it wraps; the copies share their data with it."""
    copied = copy.copy(dataset)
    for name in _WRAPPED:
        inner = getattr(copied, "__dict__", {}).get(name)
        if isinstance(inner, list | tuple):
            setattr(copied, name, type(inner)(_copied(item) for item in inner))
        elif inner is not None and hasattr(inner, "__getitem__"):
            setattr(copied, name, _copied(inner))
    return copied


def _bytes_of(value: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    _add(digest, value)
    return digest.hexdigest()


def _add(digest: _Digest, value: Any) -> None:
    """Add a value to a digest, with its type and shape.

    Raises:
        _Unknown: It is neither plain data nor composed of plain data.
    """
    if isinstance(value, torch.Tensor):
        _add_tensor(digest, value)
    elif isinstance(value, np.ndarray | np.generic):
        _add_array(digest, np.asarray(value))
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes):
        digest.update(f"{type(value).__name__} {value!r};".encode(errors="surrogatepass"))
    elif isinstance(value, Mapping):
        _add(digest, [item for pair in value.items() for item in pair])
    elif isinstance(value, list | tuple):
        digest.update(f"{len(value)} items;".encode())
        for item in value:
            _add(digest, item)
    elif is_dataclass(value):
        _add(digest, [getattr(value, field.name) for field in fields(value)])
    elif hasattr(value, "__array__") or hasattr(value, "__array_interface__"):  # images
        _add_array(digest, np.asarray(value))
    elif isinstance(value, io.IOBase) or not getattr(value, "__dict__", None):
        raise _Unknown
    else:
        _add(digest, vars(value))


def _add_tensor(digest: _Digest, tensor: torch.Tensor) -> None:
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise _Unknown
    digest.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def _add_array(digest: _Digest, array: np.ndarray[Any, Any]) -> None:
    if array.dtype.hasobject:
        raise _Unknown
    digest.update(f"{array.dtype} {array.shape};".encode() + np.ascontiguousarray(array).tobytes())

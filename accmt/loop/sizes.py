"""The number of samples of a batch, which means are weighted by.

It is what a loader put into the batch: the samples that its `collate_fn` was given, or the indices that its sampler
gave. Where a loader takes batches as they come (`batch_size=None`), the module's `batch_size` says it, else the shapes
in the batch, where they leave no doubt. Nothing is guessed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from accmt.loop.draws import Indices, has_state
from accmt.module import AcceleratorModule


class Counting:
    """A `collate_fn` that gives the number of samples too: a pair of it and the batch."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: Any) -> tuple[int | None, Any]:
        return len(samples) if isinstance(samples, list | tuple) else None, self.collate(samples)


class Sizes:
    """The numbers of samples of the batches of a loader, which it is changed to tell.

    Args:
        loader: The loader, which nobody else uses.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        is_plain = _is_torchs(type(loader).__iter__)
        self._are_counted = is_plain and loader.batch_sampler is not None
        if self._are_counted:
            loader.collate_fn = Counting(loader.collate_fn)
        self._keeps_order = is_plain and getattr(loader, "in_order", True) and not has_state(loader)
        self._has_workers = loader.num_workers > 0

    def beside(self, batches: Iterator[Any], indices: Indices | None) -> Iterator[tuple[int | None, Any]]:
        """Pairs of number and batch; the number is None where the loader does not know it.

        Batches that are not counted have as many samples as there were indices in what was asked for. A loader of a
        kind of its own may drop batches, or read ahead: it is believed as long as it asks once for each batch.
        """
        asked: deque[int | None] = deque() if indices is None else indices.sizes
        is_certain = indices is not None and (self._keeps_order or not self._has_workers)
        for batch in batches:
            if self._are_counted:
                yield batch
                continue
            is_certain = is_certain and (self._keeps_order or len(asked) == 1)
            yield asked.popleft() if is_certain else None, batch


def _is_torchs(function: Any) -> bool:
    """Whether a function is one of torch or torchdata, not of a user's class."""
    return str(getattr(function, "__module__", "")).split(".")[0] in ("torch", "torchdata")


def samples_of(batch: Any, told: int | None, module: AcceleratorModule) -> int:
    """The number of samples of a batch.

    Args:
        batch: The batch.
        told: What its loader says; None if it does not know.
        module: Its `batch_size` is asked where the loader does not know.

    Raises:
        ValueError: It cannot be known.
    """
    if told is not None:
        return told
    name = type(module).__name__
    size = module.batch_size(batch) if _has_own(module) else None
    if size is None:
        size = _by_shapes(batch)
    elif isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 0:
        raise ValueError(f"{name}.batch_size must return a whole number of samples, or None, not {size!r:.60}")
    if size is None:
        raise ValueError(
            f"the number of samples in a batch is not known, and mean losses are weighted by it: the loader takes "
            f"batches as they come, and the shapes in a {type(batch).__name__} do not say it. "
            f"Give {name} a method batch_size(self, batch) that returns it"
        )
    return int(size)


def _has_own(module: AcceleratorModule) -> bool:
    """Whether the module has the method; `self.batch_size = 32` is something of the user's own."""
    given = getattr(type(module), "batch_size", None)
    return given is not AcceleratorModule.batch_size and callable(getattr(module, "batch_size", None))


def _by_shapes(batch: Any) -> int | None:
    """The first dimension that all tensors of a batch have; None where there is a doubt.

    A batch that is a list holds columns, unless they look like images; a list within it may hold samples.
    """
    is_list = isinstance(batch, list | tuple) and not _are_plain(batch)
    columns = batch if is_list and not _are_alike(batch, dimensions=3) else [batch]
    sizes = {size for part in columns for size in _sizes(part)}
    return sizes.pop() if len(sizes) == 1 else None


def _sizes(part: Any) -> Iterator[int | None]:
    """The number of samples that each part of a batch stands for, None for a part that does not tell."""
    if isinstance(part, Tensor | np.ndarray):
        yield part.shape[0] if part.ndim else None
    elif isinstance(part, Mapping):
        for value in part.values():
            yield from _sizes(value)
    elif isinstance(part, list | tuple):
        if _are_plain(part):
            yield len(part)
        elif _are_alike(part, dimensions=0):
            yield None
        else:
            for item in part:
                yield from _sizes(item)
    elif not _are_plain([part]):
        yield None


def _are_plain(several: Sequence[Any]) -> bool:
    return all(item is None or isinstance(item, str | bytes | Number) for item in several)


def _are_alike(several: Sequence[Any], dimensions: int) -> bool:
    """Whether several things may be samples beside each other: tensors of one kind, of at least some dimensions."""
    if not all(isinstance(item, Tensor | np.ndarray) for item in several):
        return False
    kinds = {(item.dtype, item.ndim) for item in several}
    lengths = {tuple(item.shape[:1]) for item in several}
    return len(kinds) == 1 and several[0].ndim >= dimensions and lengths != {(len(several),)}

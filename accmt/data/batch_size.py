"""Number of samples in a batch, used as the weight in means.

It is what a loader put into the batch: the samples passed to its `collate_fn`, or the indices from its sampler. If a
loader takes ready-made batches (`batch_size=None`), the module's `batch_size` decides, else the shapes in the batch if
they are unambiguous. Nothing is guessed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from accmt.checkpoint.object_state import has_state
from accmt.data.batched_fetch import CutBatch
from accmt.data.indices import Indices
from accmt.data.watch import Watch
from accmt.module import AcceleratorModule


class Counting:
    """A `collate_fn` that returns the number of samples, the batch, and whether a worker reports to a watch."""

    def __init__(self, collate: Callable[[Any], Any], watch: Watch) -> None:
        self.collate, self._watch = collate, watch

    def __call__(self, samples: Any) -> tuple[int | None, Any, bool]:
        if type(samples) is CutBatch:
            return samples.samples, samples.batch, self._watch.report()
        count = len(samples) if isinstance(samples, list | tuple) else None
        return count, self.collate(samples), self._watch.report()


class Sizes:
    """Numbers of samples in the batches of a loader, which is modified to report them.

    Args:
        loader: The loader, which is used for nothing else.
        watch: What its workers report to.
    """

    def __init__(self, loader: DataLoader[Any], watch: Watch) -> None:
        self._watch = watch
        is_plain = _is_torchs(type(loader).__iter__)
        self._are_counted = is_plain and loader.batch_sampler is not None
        if self._are_counted:
            loader.collate_fn = Counting(loader.collate_fn, watch)
        self._keeps_order = is_plain and getattr(loader, "in_order", True) and not has_state(loader)
        self._has_workers = loader.num_workers > 0

    def beside(self, batches: Iterator[Any], indices: Indices | None) -> Iterator[tuple[int | None, Any]]:
        """Yield pairs of number and batch; the number is None if the loader does not know it.

        Batches that are not counted have as many samples as indices were requested for them. A custom loader may drop
        batches, or read ahead: it is trusted as long as it makes one request per batch.
        """
        asked: deque[int | None] = deque() if indices is None else indices.sizes
        is_certain = indices is not None and (self._keeps_order or not self._has_workers)
        for batch in batches:
            if self._are_counted:
                samples, batch, reports = batch
                self._watch.reports += reports
                yield samples, batch
                continue
            is_certain = is_certain and (self._keeps_order or len(asked) == 1)
            yield asked.popleft() if is_certain else None, batch


def _is_torchs(function: Any) -> bool:
    """Return whether a function belongs to torch or torchdata, not to a user's class."""
    return str(getattr(function, "__module__", "")).split(".")[0] in ("torch", "torchdata")


def samples_of(batch: Any, told: int | None, module: AcceleratorModule) -> int:
    """Return the number of samples in a batch.

    Args:
        batch: The batch.
        told: The number given by its loader; None if unknown.
        module: Its `batch_size` is called if the loader does not know.

    Raises:
        ValueError: The number cannot be determined.
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
            f"the number of samples in a batch is unknown, and mean losses are weighted by it: the loader does not "
            f"make the batches itself, and the shapes in a {type(batch).__name__} do not show it. "
            f"Give {name} a method batch_size(self, batch) that returns it"
        )
    return int(size)


def _has_own(module: AcceleratorModule) -> bool:
    """Return whether the module overrides the method; `self.batch_size = 32` is just an attribute of the user."""
    given = getattr(type(module), "batch_size", None)
    return given is not AcceleratorModule.batch_size and callable(getattr(module, "batch_size", None))


def _by_shapes(batch: Any) -> int | None:
    """Return the first dimension that all tensors of a batch share; None if that is ambiguous.

    A batch that is a list holds columns, unless they look like images; a list within it may hold samples.
    """
    is_list = isinstance(batch, list | tuple) and not _are_plain(batch)
    columns = batch if is_list and not _are_alike(batch, dimensions=3) else [batch]
    sizes = {size for part in columns for size in _sizes(part)}
    return sizes.pop() if len(sizes) == 1 else None


def _sizes(part: Any) -> Iterator[int | None]:
    """Yield the number of samples in each part of a batch, None for a part that does not show it."""
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
    """Return whether items may be samples of a batch: tensors of one kind, of at least `dimensions` dimensions."""
    if not all(isinstance(item, Tensor | np.ndarray) for item in several):
        return False
    kinds = {(item.dtype, item.ndim) for item in several}
    lengths = {tuple(item.shape[:1]) for item in several}
    return len(kinds) == 1 and several[0].ndim >= dimensions and lengths != {(len(several),)}

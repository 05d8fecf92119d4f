"""Indices that a loader of map-style data requests: from any position in an epoch, sharded, with seeds for workers."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, get_worker_info

from accmt.data.seeding import END, apart, draw_from, fewer, mixed, read_apart
from accmt.data.watch import Watch


class Indices:
    """Batches of indices of an epoch, as a loader requests them, from any position in the epoch.

    Args:
        batches: A batch sampler; or a sampler, where each index is a batch.
        draws: They may draw from the process-wide generators.
        workers: The number of workers that they go to, which seed their generators for each batch.
        process, processes: Rank of this process, and the world size.

    Attributes:
        at_once: A batch may be a tensor of indices, or a range.
        reporting: The number of workers that report after their last batch; NaN if it is unknown.
    """

    at_once = False

    def __init__(self, batches: Iterable[Any], *, draws: bool, workers: int, process: int, processes: int) -> None:
        self._batches = batches
        self._draws, self._workers = draws, workers
        self._process, self._processes = process, processes
        self.reporting = math.nan
        self.begin(1, 0, lambda: None, lambda: None)
        # Sizes of the batches that were requested and not yet loaded; None for a single index.
        self.sizes: deque[int | None] = deque()

    def begin(self, seed: int, skip: int, reset: Callable[[], None], skipped: Callable[[], None]) -> None:
        """Set up the next iterators: an epoch that draws from `seed`, after its first `skip` batches.

        `reset` is called before each iterator, `skipped` once the batches have been skipped.
        """
        self._seed, self._skip, self._reset, self._skipped = seed, skip, reset, skipped
        # As torch draws it for workers that start in this pass.
        self._base = int(torch.empty((), dtype=torch.int64).random_(generator=torch.Generator().manual_seed(seed)))

    def read_apart(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Read the batches that this process loads itself, drawing as workers would."""
        return read_apart(batches, self._seed_of(self._skip), self._processes)

    def __iter__(self) -> Iterator[Any]:
        skip, length = self._skip, math.inf if length_of(self) is None else len(self)
        self.reporting = min(self._workers, length - skip)
        self._reset()
        self.sizes.clear()
        with self._drawing(-1):
            batches = (_at_once(self._batches) if self.at_once else None) or iter(self._batches)
        for number in count():
            if skip and number == skip:
                self._skipped()
            if self._draws:
                with self._drawing(number):
                    batch = next(batches, END)
            else:
                batch = next(batches, END)
            if batch is END and number < skip:
                raise fewer(skip, number)
            if batch is END:
                return
            if number >= skip:
                self.sizes.append(_size_of(batch))
                self.reporting = math.nan if number >= length else self.reporting
                if self._workers:
                    is_last = number + self._workers >= length
                    batch = _Request(batch, self._seed_of(number), self._base, is_last)
                yield batch

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]  # a TypeError where they have none

    def _drawing(self, number: int) -> AbstractContextManager[None]:
        """Return the context in which the indices of a batch are drawn; the same on every process."""
        return apart(self._seed + number) if self._draws else nullcontext()

    def _seed_of(self, number: int) -> int:
        """Return the seed for loading a batch of this process, from its number among the batches of all processes."""
        return mixed(self._seed) + number * self._processes + self._process


def _at_once(batches: Any) -> Iterator[Any] | None:
    """Return the batches of a plain sampler of torch as tensors, those of a sampler in order as ranges, without a step
    for each index; None for others."""
    if type(batches) is EveryNth:
        whole = _at_once(batches.items)
        return None if whole is None else iter(batches.of(whole))
    sampler: Any = batches.sampler if type(batches) is BatchSampler else None
    sampler, offset = (sampler.sampler, sampler.offset) if type(sampler) is Rest else (sampler, 0)
    permutes = type(sampler) is RandomSampler and not sampler.replacement and sampler.generator is not None
    order: Any
    if type(sampler) is SequentialSampler:
        order = range(len(sampler))
    elif permutes and len(sampler) == len(sampler.data_source):
        order = torch.randperm(len(sampler), generator=sampler.generator)
    else:
        return None
    size, order = batches.batch_size, order[offset:]
    end = len(order) // size * size if batches.drop_last else len(order)
    return (order[start : start + size] for start in range(0, end, size))


class _Request:
    """Batch of indices that seeds the generators of the worker that receives it."""

    __slots__ = ("_parts",)

    def __init__(self, *parts: Any) -> None:
        self._parts = parts

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, self._parts


def _received(batch: Any, seed: int, base: int, is_last: bool) -> Any:
    info = get_worker_info()
    if info is not None:
        draw_from(seed)
        object.__setattr__(info, "seed", base + info.id)  # its own method refuses to
        Watch.is_last = is_last
    return batch


def _size_of(batch: Any) -> int | None:
    """Return the number of indices; None for a single one, which may be a tuple."""
    if isinstance(batch, list | range):
        return len(batch)
    return batch.shape[0] if isinstance(batch, np.ndarray | torch.Tensor) and batch.ndim else None


class EveryNth:
    """Every n-th item of a sampler, from the `first` on; drawn in rounds, the same on every process.

    A last round that is incomplete is dropped by the processes that it does not reach; or padded (`pads`) from the
    first round.
    """

    def __init__(self, items: Iterable[Any], first: int, step: int, *, pads: bool) -> None:
        self.items, self._first, self._step, self._pads = items, first, step, pads

    def of(self, items: Iterable[Any]) -> EveryNth:
        """Return the same of other items."""
        return EveryNth(items, self._first, self._step, pads=self._pads)

    def __iter__(self) -> Iterator[Any]:
        items, padding = iter(self.items), list[Any]()
        while round_ := list(islice(items, self._step)):
            if self._pads:
                padding = padding or round_ * self._step
            if self._first < len(round_ + padding):
                yield (round_ + padding)[self._first]

    def __len__(self) -> int:
        length = len(self.items)  # type: ignore[arg-type]  # a TypeError where they have none
        return -(-length // self._step) if self._pads else len(range(self._first, length, self._step))


class Rest:
    """Items of a sampler, without the first `offset`; all other attributes are the sampler's."""

    def __init__(self, sampler: Iterable[Any]) -> None:
        self.sampler = sampler
        self.offset = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "sampler":
            raise AttributeError(f"'{type(self).__name__}' has no attribute '{name}'")
        return getattr(self.sampler, name)

    def __iter__(self) -> Iterator[Any]:
        items = iter(self.sampler)
        return islice(items, self.offset, None) if self.offset else items

    def __len__(self) -> int:
        return max(0, len(self.sampler) - self.offset)  # type: ignore[arg-type]  # a TypeError where it has none


@contextmanager
def without_first(part: Any, offset: int) -> Iterator[None]:
    """Let a part that skips its first `offset` items skip this number of them in the block."""
    former, part.offset = part.offset, offset
    try:
        yield
    finally:
        part.offset = former


def length_of(sized: Any) -> int | None:
    """Return the length of something; None if it has none."""
    try:
        return len(sized)
    except (TypeError, NotImplementedError):  # some datasets have a __len__ that only raises
        return None


def makes_plain_batches(loader: DataLoader[Any]) -> bool:
    """Return whether batches take one sample after the other, so that they can start anywhere."""
    return loader.batch_sampler is None or type(loader.batch_sampler) is BatchSampler


def sampler_of(loader: DataLoader[Any]) -> Any:
    """Return the sampler of single samples; the loader's own where another kind of batch sampler makes the batches."""
    batches = loader.batch_sampler
    return batches.sampler if type(batches) is BatchSampler else loader.sampler


def with_sampler(loader: DataLoader[Any], sampler: Any) -> DataLoader[Any]:
    """Return a copy of a loader with plain batches, with another sampler of single samples."""
    loader, batches = copy.copy(loader), loader.batch_sampler
    if type(batches) is BatchSampler:
        batches = copy.copy(batches)
        batches.sampler = sampler
    vars(loader).update(sampler=sampler, batch_sampler=batches)
    return loader


def rest_of(loader: DataLoader[Any], process: int, processes: int) -> tuple[Rest, Any]:
    """Return the `Rest` that skips the start of an epoch, and the batches after it that this process trains on.

    Samples are skipped if batches are plain, whole batches if another kind of batch sampler makes them.
    """
    is_plain, batches = makes_plain_batches(loader), loader.batch_sampler
    sampler: Any = sampler_of(loader) if is_plain else batches
    rest = Rest(sampler)
    if batches is None:
        return rest, EveryNth(rest, process, processes, pads=True) if processes > 1 else rest
    left: Any = with_sampler(loader, rest).batch_sampler if is_plain else rest
    return rest, BatchSamplerShard(left, processes, process) if processes > 1 else left

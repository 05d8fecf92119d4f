"""Random draws of the data: a function of seed, epoch and batch, wherever and however far ahead a batch is read.

Samplers that draw from the process-wide generators, and batches that this process loads, draw *apart*: the generators
are seeded for each batch and restored afterwards. Workers have their own generators, and seed them when the indices of
a batch arrive. So the draws are the same with any number of workers, including none, and no checkpoint has to hold
them.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

# NumPy and Python produce the same numbers from the same key, so the key gets one more word for NumPy.
_NUMPY = 0x6E70
_WORD = 2**32
END = object()


def mixed(*parts: int | str) -> int:
    """Derive a seed from parts; other parts give neither this seed nor one near it."""
    digest = blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


def draw_from(seed: int) -> None:
    """Seed the generators that data commonly draw from: those of Python, NumPy, and torch on the CPU."""
    random.seed(seed)
    np.random.seed([seed % _WORD, seed // _WORD, _NUMPY])
    torch.default_generator.manual_seed(seed)


@contextmanager
def apart(seed: int) -> Iterator[None]:
    """Draw from generators seeded with `seed` in the block, and restore those of the process afterwards."""
    former = random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()
    draw_from(seed)
    try:
        yield
    finally:
        random.setstate(former[0])
        np.random.set_state(former[1])
        torch.set_rng_state(former[2])


def read_apart(batches: Iterator[Any], seed: int, step: int = 1) -> Iterator[Any]:
    """Yield the batches, each read apart: with seeds from `seed` on, in increments of `step`."""
    while True:
        with apart(seed):
            batch = next(batches, END)
        if batch is END:
            return
        seed += step
        yield batch


class Indices:
    """Batches of indices of an epoch, as a loader requests them, from any position in the epoch.

    Args:
        batches: A batch sampler; or a sampler, where each index is a batch.
        apart: They may draw from the process-wide generators.
        for_workers: They go to workers, which seed their generators for each batch.
        process, processes: Rank of this process, and the world size.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        *,
        apart: bool,
        for_workers: bool,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.batches = batches
        self.apart, self.for_workers = apart, for_workers
        self.process, self.processes = process, processes
        self.seed, self.skip, self._samples_seed = 1, 0, 1
        self._reset: Callable[[], None] = lambda: None
        self.skipped: Callable[[], None] = lambda: None
        # Sizes of the batches that were requested and not yet loaded; None for a single index.
        self.sizes: deque[int | None] = deque()

    def begin(self, seed: int, reset: Callable[[], None], skip: int, skipped: Callable[[], None]) -> None:
        """Set up the next iterators: an epoch that draws from `seed`, after its first `skip` batches.

        `reset` is called before each iterator, `skipped` once the batches have been skipped.
        """
        self.seed, self.skip, self._samples_seed = seed, skip, mixed(seed)
        self._reset, self.skipped = reset, skipped

    def drawing(self, number: int) -> AbstractContextManager[None]:
        """Return the context in which the indices of a batch are drawn; the same on every process."""
        return apart(self.seed + number) if self.apart else nullcontext()

    def sent(self, batch: Any, number: int) -> Any:
        """Prepare a batch of this process for the loader."""
        self.sizes.append(_size_of(batch))
        return _Sent(batch, self._seed_of(number)) if self.for_workers else batch

    def read_apart(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Read the batches that this process loads itself, drawing as workers would."""
        return read_apart(batches, self._seed_of(self.skip), self.processes)

    def _seed_of(self, number: int) -> int:
        """Return the seed for loading a batch of this process, from its number among the batches of all processes."""
        return self._samples_seed + number * self.processes + self.process

    def __iter__(self) -> Iterator[Any]:
        self._reset()
        return _Reading(self)

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]  # a TypeError where they have none


class _Reading:
    """Iterator over indices that knows the number of the batch. It starts at the first request, because samplers draw
    when they start, and a loader may never use an iterator that it made."""

    def __init__(self, indices: Indices) -> None:
        self._indices = indices
        self._batches: Iterator[Any] | None = None
        self._number, self._skip = 0, indices.skip

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._skip:
            self._pass_over()
        batch = self._next()
        if batch is END:
            raise StopIteration
        return self._indices.sent(batch, self._number - 1)

    def _next(self) -> Any:
        if self._batches is None:
            self._indices.sizes.clear()
            with self._indices.drawing(-1):
                self._batches = iter(self._indices.batches)
        with self._indices.drawing(self._number):
            batch = next(self._batches, END)
        self._number += 1
        return batch

    def _pass_over(self) -> None:
        while self._number < self._skip:
            if self._next() is END:
                raise fewer(self._skip, self._number - 1)
        self._skip = 0
        self._indices.skipped()


class _Sent:
    """Batch of indices that seeds the generators of the worker that receives it."""

    __slots__ = ("_batch", "_seed")

    def __init__(self, batch: Any, seed: int) -> None:
        self._batch, self._seed = batch, seed

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (self._batch, self._seed)


def _received(batch: Any, seed: int) -> Any:
    if get_worker_info() is not None:
        draw_from(seed)
    return batch


def _size_of(batch: Any) -> int | None:
    """Return the number of indices; None for a single one, which may be a tuple."""
    if isinstance(batch, np.ndarray | torch.Tensor):
        return len(batch) if batch.ndim else None
    return len(batch) if isinstance(batch, list | range) else None


def has_state(part: Any) -> bool:
    """Return whether an object keeps a state, in torchdata's sense."""
    return hasattr(part, "state_dict") and hasattr(part, "load_state_dict")


def fewer(skip: int, passed: int) -> RuntimeError:
    """Return the error for data that end before the position to resume from."""
    return RuntimeError(
        f"the training continues after {skip} batches of an epoch, and the data end after {passed}: "
        f"they are not those that the checkpoint was made with"
    )

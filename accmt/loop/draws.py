"""What data draw at random: a function of seed, epoch and batch, wherever and however far ahead a batch is read.

Samplers that draw from the process-wide generators, and batches that this process loads, draw *apart*: from generators
that are seeded for each batch, while those of the process stay as they were. Workers, whose generators are their own,
seed them when the indices of a batch arrive. So any number of workers, none included, draws alike, and nothing of it
has to be kept in a checkpoint.
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

# NumPy and Python make the same numbers of the same key, which therefore gets one more word for NumPy.
_NUMPY = 0x6E70
_WORD = 2**32
END = object()


def mixed(*parts: int | str) -> int:
    """A seed that other parts do not give, nor neighbours of it."""
    digest = blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


def draw_from(seed: int) -> None:
    """Seed the generators that data commonly draw from: those of Python, NumPy, and torch on the CPU."""
    random.seed(seed)
    np.random.seed([seed % _WORD, seed // _WORD, _NUMPY])
    torch.default_generator.manual_seed(seed)


@contextmanager
def apart(seed: int) -> Iterator[None]:
    """Draw from generators seeded anew in the block; afterwards those of the process are as they were."""
    former = random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()
    draw_from(seed)
    try:
        yield
    finally:
        random.setstate(former[0])
        np.random.set_state(former[1])
        torch.set_rng_state(former[2])


def read_apart(batches: Iterator[Any], seed: int, step: int = 1) -> Iterator[Any]:
    """The batches, each of them read apart: from the seed on, in steps."""
    while True:
        with apart(seed):
            batch = next(batches, END)
        if batch is END:
            return
        seed += step
        yield batch


class Indices:
    """The batches of indices of an epoch, as a loader asks for them, from any place in the epoch on.

    Args:
        batches: A batch sampler; or a sampler, where each index is a batch.
        apart: They draw from the process-wide generators, perhaps.
        for_workers: They are for workers, which seed their generators for each of them.
        process, processes: Which process this is, and of how many.
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
        # Of the batches that were asked for and not yet loaded; None where the index is a single one.
        self.sizes: deque[int | None] = deque()

    def begin(self, seed: int, reset: Callable[[], None], skip: int, skipped: Callable[[], None]) -> None:
        """What the next iterators are: an epoch that draws from `seed`, after its first `skip` batches.

        `reset` is called before each of them, `skipped` when the batches are passed over.
        """
        self.seed, self.skip, self._samples_seed = seed, skip, mixed(seed)
        self._reset, self.skipped = reset, skipped

    def drawing(self, number: int) -> AbstractContextManager[None]:
        """Where the indices of a batch are drawn; the same on every process."""
        return apart(self.seed + number) if self.apart else nullcontext()

    def sent(self, batch: Any, number: int) -> Any:
        """A batch of this process as it is handed to the loader."""
        self.sizes.append(_size_of(batch))
        return _Sent(batch, self._seed_of(number)) if self.for_workers else batch

    def read_apart(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches that this process loads itself, drawn as workers would draw."""
        return read_apart(batches, self._seed_of(self.skip), self.processes)

    def _seed_of(self, number: int) -> int:
        """The seed of what is drawn while a batch of this process is loaded: that of its number among all batches."""
        return self._samples_seed + number * self.processes + self.process

    def __iter__(self) -> Iterator[Any]:
        self._reset()
        return _Reading(self)

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]  # a TypeError where they have none


class _Reading:
    """An iterator over indices, which knows the number of the batch. It begins when the first one is asked for: a
    loader may make an iterator in vain, and samplers draw when they begin."""

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
    """A batch of indices that seeds the generators of the worker that it arrives at."""

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
    """How many indices there are; a tuple may be a single one."""
    if isinstance(batch, np.ndarray | torch.Tensor):
        return len(batch) if batch.ndim else None
    return len(batch) if isinstance(batch, list | range) else None


def has_state(part: Any) -> bool:
    """Whether something keeps a state, as torchdata means it."""
    return hasattr(part, "state_dict") and hasattr(part, "load_state_dict")


def fewer(skip: int, passed: int) -> RuntimeError:
    """The error for data that end before the place that the training continues from."""
    return RuntimeError(
        f"the training continues after {skip} batches of an epoch, and the data end after {passed}: "
        f"they are not those that the checkpoint was made with"
    )

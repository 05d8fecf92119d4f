"""The rest of an epoch, from any sample on."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from torch.utils.data import BatchSampler, DataLoader


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
        given = iter(self.sampler)
        return islice(given, self.offset, None) if self.offset else given

    def __len__(self) -> int:
        return max(0, len(self.sampler) - self.offset)  # type: ignore[arg-type]  # a TypeError where it has none

    @contextmanager
    def after(self, offset: int) -> Iterator[None]:
        """Skip `offset` items in the block."""
        former, self.offset = self.offset, offset
        try:
            yield
        finally:
            self.offset = former


def makes_plain_batches(loader: DataLoader[Any]) -> bool:
    """Return whether batches take one sample after the other, so that they can start anywhere."""
    return loader.batch_sampler is None or type(loader.batch_sampler) is BatchSampler


def rest_of(loader: DataLoader[Any]) -> tuple[Rest, Any]:
    """Return the `Rest` that skips the start of an epoch, and the batches of a loader after it.

    Samples are skipped if batches are plain, whole batches if another kind of batch sampler makes them.
    """
    if loader.batch_sampler is None:
        rest = Rest(loader.sampler)
        return rest, rest
    if not makes_plain_batches(loader):
        rest = Rest(loader.batch_sampler)
        return rest, rest
    batches: Any = copy.copy(loader.batch_sampler)
    batches.sampler = rest = Rest(batches.sampler)
    return rest, batches

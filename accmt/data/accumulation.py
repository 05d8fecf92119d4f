"""Batches per optimizer step, as a function of the epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True)
class Accumulation:
    """Batches per optimizer step, as pairs (first epoch, batches), in the order of the epochs, the first from 0."""

    starts: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, given: int | Mapping[int, int]) -> Accumulation:
        """Return it from one number, or from a table: first epoch -> batches."""
        return cls(tuple(sorted(given.items())) if isinstance(given, Mapping) else ((0, given),))

    @property
    def sizes(self) -> set[int]:
        return {size for _, size in self.starts}

    def at(self, epoch: int) -> int:
        """Return the batches per step in an epoch."""
        return next(size for start, size in reversed(self.starts) if start <= epoch)

    def steps_before(self, epoch: int, batches: int) -> int:
        """Count the optimizer steps of all epochs before one, each of so many batches."""
        return _steps_before(self, epoch, batches)

    def epochs_for(self, steps: int, batches: int) -> int:
        """Count the epochs, each of so many batches, that contain so many optimizer steps."""
        for start, end, size in self.spans():
            per_epoch = -(-batches // size)
            if steps <= per_epoch * (end - start):
                return start + -(-steps // per_epoch)
            steps -= per_epoch * int(end - start)
        raise AssertionError("the last span has no end")

    def __str__(self) -> str:
        (_, first), *later = self.starts
        return ", ".join([str(first), *(f"{size} from epoch {start}" for start, size in later)])

    def spans(self) -> Iterator[tuple[int, float, int]]:
        """Yield the first epoch, the end and the batches per step of each span of epochs."""
        ends = (*(start for start, _ in self.starts[1:]), math.inf)
        for (start, size), end in zip(self.starts, ends, strict=True):
            yield start, end, size


@cache  # asked for at every step
def _steps_before(accumulation: Accumulation, epoch: int, batches: int) -> int:
    spans = ((min(end, epoch) - start, size) for start, end, size in accumulation.spans() if start < epoch)
    return sum(int(epochs) * -(-batches // size) for epochs, size in spans)

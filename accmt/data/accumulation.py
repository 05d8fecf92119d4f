"""Batches per optimizer step, as a function of the epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True)
class Accumulation:
    """Batches per optimizer step, as pairs (first epoch, batches), in the order of the epochs, the first from 0."""

    starts: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, given: int | Mapping[int, int]) -> Accumulation:
        return cls(tuple(sorted(given.items())) if isinstance(given, Mapping) else ((0, given),))

    @property
    def sizes(self) -> set[int]:
        return {size for _, size in self.starts}

    def at(self, epoch: int) -> int:
        """Return the batches per step in an epoch."""
        return next(size for start, size in reversed(self.starts) if start <= epoch)

    def epochs_for(self, steps: int, batches: int) -> int:
        """Count the epochs, each of so many batches, that contain so many optimizer steps."""
        begins = ((start, steps - steps_before(self, start, batches)) for start, _ in reversed(self.starts))
        start, rest = next((start, rest) for start, rest in begins if rest > 0 or start == 0)
        return start + -(-rest // -(-batches // self.at(start)))

    def __str__(self) -> str:
        (_, first), *later = self.starts
        return ", ".join([str(first), *(f"{size} after {start} epoch{'s' * (start > 1)}" for start, size in later)])


@cache  # asked for at every step
def steps_before(accumulation: Accumulation, epoch: int, batches: int) -> int:
    """Count the optimizer steps of all epochs, each of so many batches, before one."""
    if epoch == 0:
        return 0
    start, size = next(each for each in reversed(accumulation.starts) if each[0] < epoch)
    return steps_before(accumulation, start, batches) + (epoch - start) * -(-batches // size)

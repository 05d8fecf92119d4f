"""The unit that a place in an epoch is counted in: samples, wherever batches do not have to stay what they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from accmt.loop.rest import makes_plain_batches
from accmt.rules.jsonable import count_from

SAMPLES, BATCHES = "samples", "batches"


@dataclass(frozen=True, slots=True)
class Unit:
    """What a place in an epoch is counted in.

    Attributes:
        counts: "samples"; or "batches", where a batch sampler of the user's makes them.
        batch_size: Samples of a batch of one process; None where it is not known.
        processes: How many processes share the data.
        readers: For a stream: the workers that read it, each with a share of its own, and 1 where they are fewer.
    """

    counts: str
    batch_size: int | None
    processes: int
    readers: int

    @property
    def size(self) -> int:
        """What one batch of each process brings forward."""
        return self.processes * ((self.batch_size or 1) if self.counts == SAMPLES else 1)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Unit:
        """
        Raises:
            ValueError, KeyError, TypeError: It is none.
        """
        size = None if data["batch_size"] is None else max(1, count_from(data["batch_size"]))
        counts = SAMPLES if data["counts"] == SAMPLES else BATCHES
        return cls(counts, size, max(1, count_from(data["processes"])), count_from(data["readers"]))


def unit_of(loader: DataLoader[Any], size: int, processes: int) -> Unit:
    """The unit for a loader with batches of a size, shared by so many processes."""
    is_stream = isinstance(loader.dataset, IterableDataset)
    counts = SAMPLES if is_stream or makes_plain_batches(loader) else BATCHES
    known = size if counts == SAMPLES else getattr(loader.batch_sampler, "batch_size", None)
    return Unit(counts, known, processes, max(1, loader.num_workers) if is_stream else 1)


def unit_in_words(unit: Unit) -> str:
    """How the data are read, for errors."""
    size = "batches" if unit.batch_size is None else f"batches of {unit.batch_size}"
    workers = f" and {unit.readers} workers" if unit.readers > 1 else ""
    return f"{size} on {unit.processes} process(es){workers}"

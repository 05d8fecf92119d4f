"""Unit in which a position in an epoch is counted: samples, unless batches must stay the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from accmt.data.rest_of_epoch import makes_plain_batches

SAMPLES, BATCHES = "samples", "batches"


@dataclass(frozen=True, slots=True)
class Unit:
    """Unit in which a position in an epoch is counted.

    Attributes:
        counts: "samples"; or "batches", if a batch sampler of the user makes them.
        batch_size: Samples per batch of one process; None if unknown.
        processes: Number of processes that share the data.
        readers: For a stream, the number of workers that read it, each with its own shard; at least 1.
    """

    counts: str
    batch_size: int | None
    processes: int
    readers: int

    @property
    def size(self) -> int:
        """Units that one batch on each process takes together."""
        return self.processes * ((self.batch_size or 1) if self.counts == SAMPLES else 1)


def unit_of(loader: DataLoader[Any], size: int, processes: int) -> Unit:
    """Return the unit for a loader with batches of `size`, shared by `processes` processes."""
    is_stream = isinstance(loader.dataset, IterableDataset)
    counts = SAMPLES if is_stream or makes_plain_batches(loader) else BATCHES
    known = size if counts == SAMPLES else getattr(loader.batch_sampler, "batch_size", None)
    return Unit(counts, known, processes, max(1, loader.num_workers) if is_stream else 1)


def unit_in_words(unit: Unit) -> str:
    """Describe how the data are read, for error messages."""
    size = "batches" if unit.batch_size is None else f"batches of {unit.batch_size}"
    workers = f" and {unit.readers} workers" if unit.readers > 1 else ""
    return f"{size} on {unit.processes} process(es){workers}"

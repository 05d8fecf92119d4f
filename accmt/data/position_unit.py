"""Unit in which a position in an epoch is counted: samples, unless batches must stay the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from accmt.checkpoint.stateful import Mismatch
from accmt.data.indices import makes_plain_batches

_SAMPLES, _BATCHES = "samples", "batches"


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
        return self.processes * ((self.batch_size or 1) if self.counts == _SAMPLES else 1)

    @classmethod
    def of_loader(cls, loader: DataLoader[Any], size: int, processes: int) -> Unit:
        """Return the unit for a loader with batches of `size`, sharded across `processes` processes."""
        is_stream = isinstance(loader.dataset, IterableDataset)
        counts = _SAMPLES if is_stream or makes_plain_batches(loader) else _BATCHES
        known = size if counts == _SAMPLES else getattr(loader.batch_sampler, "batch_size", None)
        return cls(counts, known, processes, max(1, loader.num_workers) if is_stream else 1)


def check_move(then: Unit, now: Unit, *, starts_between_batches: bool) -> None:
    """Check that a position counted in one unit is one in another.

    Args:
        then: The unit of the checkpoint.
        now: The present unit.
        starts_between_batches: The data can be read from there: between two batches, or because any sample will do.

    Raises:
        Mismatch: There is no such position: samples would be trained on twice, or never.
    """
    why = ""
    if now.counts != then.counts or (now.counts == _BATCHES and now.batch_size != then.batch_size):
        why = "a batch sampler makes the batches, and only it knows which samples the first ones contained"
    elif max(now.readers, then.readers) > 1:
        why = "several workers read the stream, and which samples they have read depends on these settings"
    elif not starts_between_batches:
        why = "reading of the stream can only resume at the end of a batch"
    if why:
        raise Mismatch(
            f"the checkpoint was made in the middle of an epoch, with {_in_words(then)}, and now there "
            f"are {_in_words(now)}: {why}. Nothing was loaded.\n"
            f"Restore the previous settings for the rest of the epoch, continue from a checkpoint at the end of an "
            f"epoch, or start from scratch with resume=False."
        )


def _in_words(unit: Unit) -> str:
    """Describe how the data are read, for error messages."""
    size = "batches" if unit.batch_size is None else f"batches of {unit.batch_size}"
    workers = f" and {unit.readers} workers" if unit.readers > 1 else ""
    return f"{size} on {unit.processes} process(es){workers}"

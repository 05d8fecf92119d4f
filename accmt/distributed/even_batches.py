"""The same number of forward passes on every process, for sharded models.

A process that has fewer batches of a dataset than another repeats its last one, and the result is discarded. So nothing
counts twice, and no process waits for a part of the model that never comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import distributed as dist

_END = object()


def in_step(batches: Iterable[Any], own: int | None) -> Iterator[tuple[Any, bool]]:
    """Yield the batches of this process and whether each counts, the same number on every process.

    Args:
        batches: The batches that count.
        own: Their number; None if unknown, on all processes: then they agree before each batch.
    """
    if own is None:
        yield from _of_unknown(iter(batches))
        return
    most, least = _extremes(own)
    stand_in = _of_main(batches, own) if most and not least else None
    for batch in batches:
        stand_in = batch
        yield batch, True
    for _ in range(most - own):
        yield stand_in, False


def _of_unknown(batches: Iterator[Any]) -> Iterator[tuple[Any, bool]]:
    stand_in: Any = _END
    while True:
        batch = next(batches, _END)
        most, least = _extremes(int(batch is not _END))
        if not most:
            return
        if stand_in is _END and not least:
            stand_in = _shared(batch)
        stand_in = stand_in if batch is _END else batch
        yield stand_in, batch is not _END


def _extremes(number: int) -> tuple[int, int]:
    """Return the largest and the smallest number over all processes."""
    numbers = torch.tensor([number, -number], device=PartialState().device)
    dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
    most, least = numbers.tolist()
    return most, -least


def _of_main(batches: Iterable[Any], own: int) -> Any:
    """Return the first batch of the main process, which has one if any process has."""
    return _shared(next(iter(batches)) if own else None)


def _shared(batch: Any) -> Any:
    shared = [batch if PartialState().is_main_process else None]
    broadcast_object_list(shared)
    return shared[0]

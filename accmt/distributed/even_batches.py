"""The same number of forward passes on every process, for sharded models.

A process that has fewer batches of a dataset than another repeats its last one, and the result is discarded. So nothing
counts twice, and no process waits for a part of the model that never comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from operator import is_
from typing import Any

from accmt.distributed.collective import agreed, everywhere

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
    numbers = everywhere(lambda: own)
    most = max(numbers)
    # The main process has a batch if any has.
    stand_in = agreed(next(iter(batches)) if own else None) if most and not min(numbers) else None
    for batch in batches:
        stand_in = batch
        yield batch, True
    for _ in range(most - own):
        yield stand_in, False


def _of_unknown(batches: Iterator[Any]) -> Iterator[tuple[Any, bool]]:
    stand_in: Any = _END
    while True:
        batch = next(batches, _END)
        ended = everywhere(partial(is_, batch, _END))
        if all(ended):
            return
        if stand_in is _END and any(ended):
            stand_in = agreed(batch)
        stand_in = stand_in if batch is _END else batch
        yield stand_in, batch is not _END

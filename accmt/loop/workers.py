"""Processes that load batches, and the signals that reach them too when all processes of a training get one.

SIGTERM to all of them would end the workers first, and with them the training, before it has made its checkpoint.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from functools import cache, partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext, ForkProcess, SpawnContext, SpawnProcess
from multiprocessing.util import Finalize
from typing import Any

from torch.utils.data import DataLoader

# What a worker that is asked to end waits at most for the end of its training.
_PATIENCE = 60.0
_HELD = (signal.SIGTERM, signal.SIGUSR1)

_Begin = Callable[[int], None] | None


def outlast_signals(loader: DataLoader[Any]) -> None:
    """Let the workers of a loader go on when they get SIGTERM, as long as their training may still need them.

    SIGUSR1 they ignore. They end with their loader; with the process of the training, which asks them by SIGTERM as
    well; and by themselves if neither ends in a minute.
    """
    if not loader.num_workers:
        return
    loader.worker_init_fn = partial(_begin, _end_of(os.getpid()), loader.worker_init_fn)
    context = loader.multiprocessing_context or multiprocessing.get_context()
    loader.multiprocessing_context = _HOLDING.get(type(context), context)


class _Holding:
    """A worker that signals do not reach until it is ready for them: torch lets SIGTERM end it before."""

    def start(self) -> None:
        former = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)  # the new process begins with it
        try:
            super().start()  # type: ignore[misc]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)


class _Forked(_Holding, ForkProcess):
    pass


class _Spawned(_Holding, SpawnProcess):
    pass


class _Forking(ForkContext):
    Process = _Forked


class _Spawning(SpawnContext):
    Process = _Spawned


# A server of forks does not pass on what is held: its workers keep the gap.
_HOLDING = {ForkContext: _Forking(), SpawnContext: _Spawning()}


@cache
def _end_of(process: int) -> Connection:
    """Where something can be read once this process ends: before it asks its children to end, and waits for them."""
    reader, writer = Pipe(duplex=False)
    Finalize(None, writer.send_bytes, args=(b"ends",), exitpriority=100)
    return reader


def _begin(end: Connection, first: _Begin, worker: int) -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, partial(_end_later, end))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
    if first is not None:
        first(worker)


def _end_later(end: Connection, number: int, frame: Any) -> None:
    threading.Thread(target=_wait_and_end, args=(end, 128 + number), daemon=True).start()


def _wait_and_end(end: Connection, code: int) -> None:
    end.poll(_PATIENCE)  # nobody reads it: all workers see it
    os._exit(code)

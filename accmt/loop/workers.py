"""Processes that load batches, and the signals that reach them too when all processes of a training get one.

SIGTERM to all of them would end the workers first, and with them the training, before it has made its checkpoint.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from torch.utils.data import DataLoader

# What a worker that is asked to end waits for its training, which ends it when it is done.
_PATIENCE = 60.0

_Begin = Callable[[int], None] | None


def outlast_signals(loader: DataLoader[Any]) -> None:
    """Let the workers of a loader go on when they get SIGTERM, as long as their training may still need them.

    SIGUSR1 they ignore. They end with the training, and by themselves if nobody ends them in a minute.
    """
    loader.worker_init_fn = partial(_begin, loader.worker_init_fn)


def _begin(first: _Begin, worker: int) -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)
    if first is not None:
        first(worker)


def _end_later(number: int, frame: Any) -> None:
    timer = threading.Timer(_PATIENCE, os._exit, (128 + number,))
    timer.daemon = True
    timer.start()

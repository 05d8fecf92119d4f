"""Signals that end a training or request a checkpoint: handlers only set a flag, and the loop acts at a step."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

# Launchers forward what the whole process group gets anyway: within this time, a second signal is the first again.
_SAME = 1.0

# By weight, from 1: if several arrived, the heaviest counts. Windows has no SIGUSR1.
_WATCHED = (getattr(signal, "SIGUSR1", None), signal.SIGTERM)
CHECKPOINT, END = 1, 2


class Terminated(SystemExit):
    """Exit because SIGTERM ended a training, after its checkpoint was made. If not caught, the script exits with the
    status that the signal would have given it."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class Signals:
    """Requests that signals have made to this process."""

    def __init__(self) -> None:
        self._asked: set[int] = set()
        self._ended_at = math.inf
        self._former: dict[int, Any] = {}

    @property
    def weight(self) -> int:
        """Request with the largest weight: 0 for none, CHECKPOINT, or END."""
        return max(self._asked) if self._asked else 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Handle SIGTERM and SIGUSR1 in the block, unless the process ignores them. Former handlers are restored.

        A second SIGTERM, more than a second later, goes to the former handler, and so usually ends the process at once.
        Outside of the main thread Python allows no handlers, and nothing is handled.
        """
        if threading.current_thread() is threading.main_thread():
            for number in filter(None, _WATCHED):
                former = signal.getsignal(number)
                if former is not signal.SIG_IGN:
                    self._former[number] = former
                    signal.signal(number, self._take)
        try:
            yield
        finally:
            for taken in list(self._former):
                self._put_back(taken)

    def forget(self, weight: int) -> None:
        """Mark a request as done."""
        self._asked.discard(weight)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self._asked.add(_WATCHED.index(signal.Signals(number)) + 1)
        if number != signal.SIGTERM:
            return
        now = time.monotonic()
        if now - self._ended_at > _SAME:
            self._put_back(number)
            signal.raise_signal(number)
        self._ended_at = min(self._ended_at, now)

    def _put_back(self, number: int) -> None:
        former = self._former.pop(number, None)
        # None stands for a handler installed from C, which Python cannot restore.
        signal.signal(number, signal.SIG_DFL if former is None else former)


def end_by_signal(ended: Terminated) -> NoReturn:
    """End as SIGTERM does, now that its former handler is restored.

    Raises:
        Terminated: The given one, if that handler lets the process live.
    """
    signal.raise_signal(signal.SIGTERM)
    raise ended

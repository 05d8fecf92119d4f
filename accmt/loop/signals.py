"""Signals that end a training or ask it for a checkpoint: they only leave a word, and the loop acts at a step."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Launchers pass on what the whole group of processes gets anyway: so soon, a second signal is the first one again.
_SAME = 1.0

# By their weight, from 1: where several came, the heaviest counts.
_WATCHED = (signal.SIGUSR1, signal.SIGTERM)
CHECKPOINT, END = 1, 2


class Terminated(SystemExit):
    """SIGTERM ended a training, after its checkpoint was made. If it is not caught, the script ends with the status
    that the signal would have given it."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class Signals:
    """What signals have asked this process for."""

    def __init__(self) -> None:
        self._asked: set[int] = set()
        self._ended_at = math.inf
        self._former: dict[int, Any] = {}

    @property
    def weight(self) -> int:
        """0 for nothing, CHECKPOINT, or END."""
        return max(self._asked, default=0)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Take SIGTERM and SIGUSR1 meanwhile, but those that the process ignores. The former handlers are put back.

        A second SIGTERM, more than a second later, goes to the former handler, and so usually ends the process at once.
        Outside of the main thread Python knows no handlers, and nothing is taken.
        """
        if threading.current_thread() is threading.main_thread():
            for number in _WATCHED:
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
        """What was asked for is done."""
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
        # None is the handler of a library in C, which Python cannot put back.
        signal.signal(number, signal.SIG_DFL if former is None else former)


def end_by_signal(ended: Terminated) -> None:
    """End as SIGTERM does, now that its former handler is back.

    Raises:
        Terminated: The given one; that handler let the process live.
    """
    signal.raise_signal(signal.SIGTERM)
    raise ended

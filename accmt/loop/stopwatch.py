"""The clock of a training. Does not import torch."""

from __future__ import annotations

import time


class Stopwatch:
    """Active training time in seconds, continued across resumes."""

    def __init__(self) -> None:
        self._before = 0.0
        self._started: float | None = time.perf_counter()

    def elapsed(self) -> float:
        started = self._started
        return self._before + (0.0 if started is None else time.perf_counter() - started)

    def pause(self) -> None:
        """Measure nothing until `run`."""
        self._before, self._started = self.elapsed(), None

    def run(self) -> None:
        """Measure from now on, if it is paused."""
        self.set(self.elapsed())

    def set(self, elapsed: float) -> None:
        """Continue from a given time."""
        self._before, self._started = elapsed, time.perf_counter()

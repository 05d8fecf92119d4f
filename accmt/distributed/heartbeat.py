"""Events that a single process may see, and on which all must act at the same step.

These are: the time, by the clock of the main process; a signal to any process; a stop that the script requests on any
process; and the end of a background write, once it has ended on all. A single process checks at each step. Several
exchange a few numbers about twice a second, asynchronously: what is sent at one step is known at the next. If steps are
so long that this would be late, they wait for the answer at each step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Protocol

import torch
from accelerate import PartialState
from torch import distributed as dist

from accmt.distributed.collective import everywhere
from accmt.distributed.process_group import side_group
from accmt.distributed.signals import END, Signals

_ASK_EVERY = 0.5  # seconds
_PATIENCE = timedelta(seconds=5)

# Requests that other processes never answered. Ending them would block, so they end with the process.
_unanswered: list[tuple[dist.Work, dist.ProcessGroup | None]] = []


class Writer(Protocol):
    """Background writer of one checkpoint after another.

    Attributes:
        has_news: True if a write has finished here since the last `finish`.
        ended: Number of writes that have finished here.
    """

    @property
    def has_news(self) -> bool: ...

    @property
    def ended(self) -> int: ...


class Heartbeat:
    """Detector, between two steps, of events that do not depend on the step count.

    Args:
        elapsed: The active training time of this process in seconds.
        signals: Requests that signals make to this process.
        writer: The background writer.
    """

    def __init__(self, elapsed: Callable[[], float], signals: Signals, writer: Writer) -> None:
        self._elapsed = elapsed
        self._signals = signals
        self._writer = writer
        self._is_alone = PartialState().num_processes == 1
        self._group = side_group()
        self._asked: tuple[dist.Work, torch.Tensor] | None = None
        self._ask_at, self._interval = 0, 1
        self._former = (0, 0.0)
        self._reason: str | None = None
        self._is_stopped = False
        self._weight = 0
        self._ended = 0

    @property
    def weight(self) -> int:
        """Request made by signals, as all processes know it: 0 for none, CHECKPOINT, or END."""
        return self._signals.weight if self._is_alone else self._weight

    @property
    def has_news(self) -> bool:
        """True if the background write has finished on all processes, as all of them know it.

        An answer may be older than the current write: it covers only the writes that it has counted.
        """
        return self._writer.has_news and (self._is_alone or self._ended >= self._writer.ended)

    @property
    def is_stopped(self) -> bool:
        """True if the script requests a stop, as all processes know it."""
        return self._reason is not None if self._is_alone else self._is_stopped

    def ask_to_stop(self, reason: str) -> None:
        """Request that the training stop, from any thread of any process. The first reason counts."""
        if self._reason is None:
            self._reason = reason

    def asked_to_stop(self) -> str | None:
        """Return why the script requests a stop, on any process; None if it does not. Call it on all processes."""
        return next((reason for reason in everywhere(lambda: self._reason) if reason is not None), None)

    def is_to_end(self) -> bool:
        """Return whether a signal to any process requests the end. Call it on all processes."""
        return END in everywhere(lambda: self._signals.weight)

    def strikes(self, moment: float, step: int) -> bool:
        """Return whether the moment (in seconds of training) has come, or a signal, a requested stop or the end of a
        checkpoint's writing."""
        if self._is_alone:
            if self._signals.weight > 0 or self._writer.has_news or self._reason is not None:
                return True
            return moment != math.inf and self._elapsed() >= moment
        if self._asked is not None:
            return self._answer(moment, step)
        if step >= self._ask_at:
            self._ask()
            return self._interval == 1 and self._answer(moment, step)
        return False

    def forget(self, weight: int) -> None:
        """Mark the requests of this weight as done; others may have arrived since."""
        self._signals.forget(weight)
        self._weight = 0

    def close(self) -> None:
        """Wait, with a timeout, for a pending exchange: a process that has failed may never answer."""
        if self._asked is not None:
            work = self._asked[0]
            with suppress(RuntimeError):  # no one needs the answer
                work.wait(_PATIENCE)
            if not work.is_completed():
                _unanswered.append((work, self._group))
        self._asked = self._group = None

    def _ask(self) -> None:
        """Send what this process knows; the maximum of each number comes back."""
        elapsed = self._elapsed() if PartialState().is_main_process else 0.0
        known = [float(self._signals.weight), elapsed, -float(self._writer.ended), float(self._reason is not None)]
        numbers = torch.tensor(known, dtype=torch.float64)
        work = dist.all_reduce(numbers, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._asked = work, numbers

    def _answer(self, moment: float, step: int) -> bool:
        """Process the answer; the next request is due in about half a second, by the pace since the last."""
        assert self._asked is not None
        work, numbers = self._asked
        work.wait()
        self._asked = None
        weight, now, ended, is_stopped = numbers.tolist()
        self._weight, self._is_stopped = int(weight), bool(is_stopped)
        self._ended = -int(ended)
        former_step, former_time = self._former
        pace = (step - former_step) / max(now - former_time, 1e-3)
        self._interval = max(1, min(int(pace * _ASK_EVERY), 2 * self._interval))
        self._former, self._ask_at = (step, now), step + self._interval
        return weight > 0 or self.has_news or self._is_stopped or now >= moment

"""What a single process alone can know, and all have to act on at the same step.

That is: the time, by the clock of the main process; a signal, whichever process got it; a stop that the script asks for
on any of them; and that a checkpoint in the background is written, once it is everywhere. A single process looks at
each step. Several exchange a few numbers about twice a second, without waiting for them: what was asked at one step is
known at the next. Where steps are so long that this would be late, they wait for the answer at each step.
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

from accmt.loop.processes import side_group
from accmt.loop.signals import Signals

_ASK_EVERY = 0.5  # seconds
_PATIENCE = timedelta(seconds=5)

# What other processes never answered. Its end would wait for them: it ends with the process.
_unanswered: list[tuple[dist.Work, dist.ProcessGroup | None]] = []


class Writer(Protocol):
    """Something that writes in the background, one thing after the other.

    Attributes:
        has_news: Whether a writing has ended here since `finish` was called.
        ended: How many writings have ended here.
    """

    @property
    def has_news(self) -> bool: ...

    @property
    def ended(self) -> int: ...


class Pulse:
    """Tells between two steps whether something has come that no number of steps says.

    Args:
        elapsed: The active training time of this process in seconds.
        signals: What signals ask this process for.
        writer: What is written in the background.
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
        """What signals have asked for, as all processes know it: 0 nothing, CHECKPOINT, or END."""
        return self._signals.weight if self._is_alone else self._weight

    @property
    def has_news(self) -> bool:
        """Whether what was written in the background is written everywhere, as all processes know it.

        An answer may be older than the writing that is under way now: it only tells of those that it has counted.
        """
        return self._writer.has_news and (self._is_alone or self._ended >= self._writer.ended)

    @property
    def is_stopped(self) -> bool:
        """Whether the script asks to stop, as all processes know it."""
        return self._reason is not None if self._is_alone else self._is_stopped

    def ask_to_stop(self, reason: str) -> None:
        """Leave the word that the training shall stop; any thread of any process may. The first reason counts."""
        if self._reason is None:
            self._reason = reason

    def asked_to_stop(self) -> str | None:
        """Why the script asks to stop, on whichever process; None if it does not. All processes have to ask alike."""
        if self._is_alone:
            return self._reason
        reasons: list[str | None] = [None] * PartialState().num_processes
        dist.all_gather_object(reasons, self._reason)
        return next((reason for reason in reasons if reason is not None), None)

    def strikes(self, moment: float, step: int) -> bool:
        """Whether the moment (in seconds of training) has come, a signal, a stop that the script asks for, or the end
        of a checkpoint's writing."""
        if self._is_alone:
            if self.weight > 0 or self.has_news or self.is_stopped:
                return True
            return moment != math.inf and self._elapsed() >= moment
        if self._asked is not None:
            return self._answer(moment, step)
        if step >= self._ask_at:
            self._ask()
            return self._interval == 1 and self._answer(moment, step)
        return False

    def forget(self, weight: int) -> None:
        """What signals of this weight asked for is done; others may have come meanwhile."""
        self._signals.forget(weight)
        self._weight = 0

    def close(self) -> None:
        """Wait, in a bounded time, for what is under way: a process that has failed may never answer."""
        if self._asked is not None:
            work = self._asked[0]
            with suppress(RuntimeError):  # nobody needs the answer
                work.wait(_PATIENCE)
            if not work.is_completed():
                _unanswered.append((work, self._group))
        self._asked = self._group = None

    def _ask(self) -> None:
        """Send what this process knows; the largest of each number comes back."""
        elapsed = self._elapsed() if PartialState().is_main_process else 0.0
        known = [float(self._signals.weight), elapsed, -float(self._writer.ended), float(self._reason is not None)]
        numbers = torch.tensor(known, dtype=torch.float64)
        work = dist.all_reduce(numbers, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._asked = work, numbers

    def _answer(self, moment: float, step: int) -> bool:
        """Take what came back; the next question is due in about half a second, by the pace since the last."""
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

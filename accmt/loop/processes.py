"""What processes have to agree on."""

from __future__ import annotations

from collections.abc import Callable

from accelerate import PartialState
from accelerate.utils import broadcast_object_list


def agreed(value: float) -> float:
    """The value of the main process."""
    if PartialState().num_processes == 1:
        return value
    shared = [value]
    broadcast_object_list(shared)
    return shared[0]


class SharedClock:
    """The clock of the main process, asked about once a second where there are several processes.

    Args:
        elapsed: The active training time of this process in seconds.
    """

    def __init__(self, elapsed: Callable[[], float]) -> None:
        self._elapsed = elapsed
        self._asked_at, self._asked_when, self._ask_at = 0, 0.0, 0

    def reached(self, moment: float, step: int) -> bool:
        """Whether the moment has come; at one step the answer is the same on all processes."""
        if PartialState().num_processes == 1:
            return self._elapsed() >= moment
        if step < self._ask_at:
            return False
        now = agreed(self._elapsed())
        pace = (step - self._asked_at) / max(now - self._asked_when, 1e-3)
        self._asked_at, self._asked_when, self._ask_at = step, now, step + max(1, int(pace))
        return now >= moment

"""The processes of a training: how they come together and part, and what they have to agree on."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module

from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list

from accmt.config.errors import ConfigError, Problem


def join_processes() -> Accelerator:
    """The Accelerator, with the process group of all processes that were launched.

    Raises:
        ConfigError: The processes do not know of each other: they would train apart and write into one folder.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1:
        # Its functions have the group as a default argument. Imported only later, as DistributedDataParallel does, it
        # keeps the group past its end, and a thread of gloo that outlives the interpreter aborts the process.
        import_module("torch.distributed.nn.functional")
    accelerator = Accelerator()
    if launched > 1 and accelerator.num_processes == 1:
        text = f"{launched} processes were launched, and Accelerate sees one: on CPUs, set ACCELERATE_USE_CPU=true"
        raise ConfigError([Problem("", text)], "the launch")
    return accelerator


def leave_processes() -> None:
    """End the process group, if there is one."""
    if PartialState().num_processes > 1:
        PartialState().destroy_process_group()


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

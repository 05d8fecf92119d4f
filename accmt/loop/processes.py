"""The processes of a training: how they come together and part, and what they have to agree on."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from importlib import import_module

from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import broadcast_object_list
from torch import distributed as dist

from accmt.config.errors import ConfigError, Problem

_OURS = "made by accmt"


def join_processes(mixed_precision: str | None = None) -> Accelerator:
    """The Accelerator, with the process group of all processes that were launched.

    Args:
        mixed_precision: "no", "fp16" or "bf16"; None for what the launcher says.

    Raises:
        ConfigError: The processes do not know of each other: they would train apart and write into one folder. Or the
            device cannot compute with this precision.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1:
        # Its functions have the group as a default argument. Imported only later, as DistributedDataParallel does, it
        # keeps the group past its end, and a thread of gloo that outlives the interpreter aborts the process.
        import_module("torch.distributed.nn.functional")
        # The same happens where the group is kept for another training, or an error ends the script.
        atexit.unregister(leave_processes)
        atexit.register(leave_processes)
    if launched > 1 and PartialState._shared_state and not dist.is_initialized() and PartialState().num_processes > 1:
        text = "the processes parted after an earlier training: give destroy_after_training=False there"
        raise ConfigError([Problem("", text)], "the launch")
    accelerator = _accelerator(mixed_precision)
    if launched > 1 and accelerator.num_processes == 1:
        text = f"{launched} processes were launched, and Accelerate sees one: on CPUs, set ACCELERATE_USE_CPU=true"
        raise ConfigError([Problem("", text)], "the launch")
    if mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ConfigError([Problem("mixed_precision", "fp16 needs a GPU: on CPUs take bf16")], "fit(...)")
    return accelerator


def _accelerator(mixed_precision: str | None) -> Accelerator:
    """An Accelerator. Accelerate keeps the precision of the first for the whole process: that of ours is forgotten."""
    is_ours = not is_initialized() or _OURS in AcceleratorState._shared_state
    if is_ours:
        AcceleratorState._reset_state()
    try:
        return Accelerator(mixed_precision=mixed_precision)
    except ValueError as error:
        raise ConfigError([Problem("mixed_precision", str(error))], "fit(...)") from None
    finally:
        if is_ours:
            AcceleratorState._shared_state[_OURS] = True


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

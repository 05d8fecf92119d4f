"""The processes of a training: joining and leaving the process group."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import torch
from accelerate import Accelerator, InitProcessGroupKwargs, PartialState
from accelerate.state import is_initialized
from torch import distributed as dist

from accmt._compat import (
    accelerator_marks,
    group_timeout,
    known_processes,
    reset_accelerator_state,
    unbuilt_deepspeed_operation,
)
from accmt.config.errors import ConfigError, Problem
from accmt.distributed.rendezvous import init_method

_OURS = "made by accmt"
_side_groups: list[dist.ProcessGroup] = []


def join_processes(mixed_precision: str | None = None) -> Accelerator:
    """Return the Accelerator, with the process group of all launched processes.

    Args:
        mixed_precision: "no", "fp16" or "bf16"; None for the launcher's setting.

    Raises:
        ConfigError: The processes are not connected, and would train separately but write into one folder. Or the
            device does not support this precision.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1:
        # Its functions have the group as a default argument. If imported only later, as DistributedDataParallel does,
        # it keeps the group alive, and a gloo thread that outlives the interpreter aborts the process.
        import_module("torch.distributed.nn.functional")
        # The same happens if the group is kept for another training, or an error ends the script.
        atexit.unregister(leave_processes)
        atexit.register(leave_processes)
    if launched > 1 and known_processes() > 1 and not dist.is_initialized():
        text = "an earlier training destroyed the process group: give its Trainer destroy_after_training=False"
        raise ConfigError([Problem("", text)], "the launch")
    accelerator = _accelerator(mixed_precision)
    if launched > 1 and accelerator.num_processes == 1:
        text = f"{launched} processes were launched, and Accelerate sees one: on CPUs, set ACCELERATE_USE_CPU=true"
        raise ConfigError([Problem("", text)], "the launch")
    if mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ConfigError([Problem("mixed_precision", "fp16 needs a GPU: on CPUs use bf16")], "fit(...)")
    return accelerator


def _accelerator(mixed_precision: str | None) -> Accelerator:
    """Create an Accelerator. Accelerate keeps the first one's precision for the whole process: reset one of ours."""
    is_ours = not is_initialized() or _OURS in accelerator_marks()
    if is_ours:
        reset_accelerator_state()
    try:
        with _deepspeed_on_cpus() as backend:
            joining = {name: value for name, value in (("backend", backend), ("init_method", init_method())) if value}
            handlers = [InitProcessGroupKwargs(**joining)] if joining else []
            return Accelerator(mixed_precision=mixed_precision, kwargs_handlers=handlers)
    except ValueError as error:
        raise ConfigError([Problem("mixed_precision", str(error))], "fit(...)") from None
    finally:
        if is_ours:
            accelerator_marks()[_OURS] = True


def require_precision(mixed_precision: str | None, accelerator: Accelerator) -> None:
    """Check that an Accelerator has the precision that a new one in this process would have.

    Raises:
        ConfigError: It has another one.
    """
    if mixed_precision is None and _OURS in accelerator_marks():
        mixed_precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if mixed_precision not in (None, accelerator.mixed_precision):
        text = (
            f"is {mixed_precision}, and the training around this evaluation computes in {accelerator.mixed_precision}"
        )
        raise ConfigError([Problem("mixed_precision", f"{text}: give the same")], "evaluate(...)")


@contextmanager
def _deepspeed_on_cpus() -> Iterator[str | None]:
    """Yield the backend for DeepSpeed without a GPU, with no operation compiled first; None in all other cases."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() != "true" or torch.cuda.is_available():
        yield None
        return
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import_module("deepspeed.ops")
    except ImportError:
        problem = "DeepSpeed is asked for and not installed: pip install deepspeed"
        raise ConfigError([Problem("", problem)], "the launch") from None
    with unbuilt_deepspeed_operation("deepspeed_shm_comm"):
        yield "gloo"


def leave_processes() -> None:
    """Destroy the process group, if there is one."""
    # After an error while they joined, Accelerate does not know the processes.
    if known_processes() > 1:
        PartialState().destroy_process_group()


def side_group() -> dist.ProcessGroup | None:
    """Create a group of all processes for work alongside their training, on the CPU; None for a single process.

    Its messages and those of the training do not wait for each other. Its timeout is that of the training's group.
    `leave_side_groups` destroys it.
    """
    state = PartialState()
    if state.num_processes == 1:
        return None
    group = dist.new_group(backend="gloo", timeout=group_timeout(state.device))
    _side_groups.append(group)
    return group  # type: ignore[no-any-return]


def leave_side_groups() -> None:
    """Destroy all side groups: those of a training end with it, however it ends."""
    while _side_groups:
        group = _side_groups.pop()
        if dist.is_initialized():
            dist.destroy_process_group(group)

"""Lists the processes that use GPU memory, shown when a training runs out of it."""

from __future__ import annotations

import psutil
import pynvml
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

_GIGABYTE = 1e9


def gpu_users() -> RenderableType:
    """Return a table of the processes on all NVIDIA GPUs (pid, user, memory in GB), or why there is none."""
    try:
        pynvml.nvmlInit()
        try:
            return _table()
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        return Text(f"out of memory; the processes that use the GPUs cannot be listed: {error}", "yellow")


def _table() -> Table:
    table = Table(title="Out of memory. Processes that use the GPUs", title_justify="left", box=None, pad_edge=False)
    for column in ("gpu", "pid", "user", "memory"):
        table.add_column(column, justify="left" if column == "user" else "right")
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
            table.add_row(str(index), str(process.pid), _user(process.pid), _gigabytes(process.usedGpuMemory))
    return table


def _user(pid: int) -> str:
    try:
        return psutil.Process(pid).username()
    except psutil.Error:
        return "unknown"


def _gigabytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / _GIGABYTE:.2f} GB"

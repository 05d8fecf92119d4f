"""Utilization of the machine by a training. Only the main process measures, and only at logging steps."""

from __future__ import annotations

import psutil
import torch

from accmt.monitor import Monitor

_GIGABYTE = 1e9


def begin_measuring(monitor: Monitor, device: torch.device) -> str | None:
    """Begin the interval of the first measurement, and return what cannot be measured; None if everything can."""
    if monitor.cpu_utilization:
        psutil.cpu_percent()
    if not monitor.gpu_utilization:
        return None
    if device.type != "cuda":
        return f"gpu_utilization is not measured: this process trains on {device.type}"
    load = _gpu_load(device)
    return f"gpu_utilization_percent is not measured: {load}" if isinstance(load, Exception) else None


def utilization(monitor: Monitor, device: torch.device) -> dict[str, float]:
    """Measure what the monitor asks for, as far as possible.

    Args:
        monitor: The requested values.
        device: The device of this process.

    Returns:
        `cpu_utilization` and `gpu_utilization`: memory in GB (1e9 bytes) held by this process, and by its tensors on
        its GPU. `cpu_utilization_percent`: how busy all processors of the machine were, data loading included, since
        the last measurement. `gpu_utilization_percent`: for how much of its last sample period (up to a second) the GPU
        was busy, with any process. No measurement waits for the GPU.
    """
    values: dict[str, float] = {}
    if monitor.cpu_utilization:
        values["cpu_utilization"] = psutil.Process().memory_info().rss / _GIGABYTE
        values["cpu_utilization_percent"] = psutil.cpu_percent()
    if monitor.gpu_utilization and device.type == "cuda":
        values["gpu_utilization"] = torch.cuda.memory_allocated(device) / _GIGABYTE
        load = _gpu_load(device)
        if not isinstance(load, Exception):
            values["gpu_utilization_percent"] = load
    return values


def _gpu_load(device: torch.device) -> float | Exception:
    """Return the GPU load in percent, from the driver by nvidia-ml-py; or its error, as on a part of a divided GPU."""
    try:
        return float(torch.cuda.utilization(device))
    except Exception as error:
        return error

"""Hardware and packages of this machine, found without importing PyTorch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import takewhile


def gpus(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many NVIDIA GPUs a process with this environment sees; 0 without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        there = int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return 0
    finally:
        pynvml.nvmlShutdown()
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return there
    # As in CUDA, entries after the first invalid one are ignored.
    entries = (entry.strip() for entry in visible.split(","))
    return sum(1 for _ in takewhile(lambda entry: _is_device(entry, there), entries))


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def installed(package: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _is_device(entry: str, there: int) -> bool:
    return int(entry) < there if entry.isdecimal() else entry.startswith(("GPU-", "MIG-"))

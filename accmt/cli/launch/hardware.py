"""Hardware and packages of this machine, found without importing PyTorch."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from itertools import takewhile


def visible_gpus() -> list[str]:
    """Return the NVIDIA GPUs that a process sees, named as in `CUDA_VISIBLE_DEVICES`; empty without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        count = int(pynvml.nvmlDeviceGetCount())
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count))))
    # As in CUDA, entries after the first invalid one are ignored.
    entries = (entry.strip() for entry in visible.split(","))
    return list(takewhile(lambda entry: _is_gpu(entry, count), entries))


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def installed(package: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _is_gpu(entry: str, count: int) -> bool:
    return int(entry) < count if entry.isdecimal() else entry.startswith(("GPU-", "MIG-"))

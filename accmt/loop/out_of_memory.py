"""Out-of-memory errors: recognizing them, and retrying a step after one."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache

_T = TypeVar("_T")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether torch ran out of memory; some backends only say so in the text of a RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "out of memory" in str(error).lower()
    )


def clean_caches() -> None:
    """Free unused memory: all of it on a device, only recent garbage in main memory.

    A full garbage collection can take as long as a small training; if no device memory depends on it, it is left to
    Python's collector.
    """
    if torch.accelerator.is_available():
        clear_device_cache(garbage_collection=True)
    else:
        gc.collect(1)


def _free(error: BaseException) -> None:
    """Free what the frames of a failed step still hold."""
    traceback.clear_frames(error.__traceback__)
    error.__traceback__ = None
    clear_device_cache(garbage_collection=True)


def may_repeat(error: RuntimeError, allowed: Callable[[], bool]) -> bool:
    """Return whether a failed action may be retried: it ran out of memory, and `allowed()`. Then free what it held."""
    repeats = is_out_of_memory(error) and allowed()
    if repeats:
        _free(error)
    return repeats


def tried_again(action: Callable[[], _T], allowed: Callable[[], bool]) -> _T:
    """Run an action; if it runs out of memory, free what it held and retry it once.

    Args:
        action: The action.
        allowed: Returns, after the failure, whether it may be retried.
    """
    try:
        return action()
    except RuntimeError as error:
        if not may_repeat(error, allowed):
            raise
    return action()

"""Running out of memory: what it looks like, and the second try of a step that did."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache

_T = TypeVar("_T")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch ran out of memory; some backends only say so in the text of a RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "out of memory" in str(error).lower()
    )


def clean_caches() -> None:
    """Free what is no longer used: on a device all of it, in main memory what became garbage of late.

    A look at all objects of a process takes as long as many a small training; it is left to Python's own schedule where
    no memory of a device hangs on it.
    """
    if torch.accelerator.is_available():
        clear_device_cache(garbage_collection=True)
    else:
        gc.collect(1)


def free(error: BaseException) -> None:
    """Free what the frames of a failed step still hold."""
    traceback.clear_frames(error.__traceback__)
    error.__traceback__ = None
    clear_device_cache(garbage_collection=True)


def tried_again(action: Callable[[], _T]) -> _T:
    """Run an action; when it runs out of memory, free what it held and run it once more."""
    try:
        return action()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        free(error)
    return action()

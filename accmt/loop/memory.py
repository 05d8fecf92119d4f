"""Running out of memory: what it looks like, and the second try of a step that did."""

from __future__ import annotations

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
    """Free what is no longer used, in main memory and on the device."""
    clear_device_cache(garbage_collection=True)


def free(error: BaseException) -> None:
    """Free what the frames of a failed step still hold."""
    traceback.clear_frames(error.__traceback__)
    error.__traceback__ = None
    clean_caches()


def tried_again(action: Callable[[], _T]) -> _T:
    """Run an action; when it runs out of memory, free what it held and run it once more."""
    try:
        return action()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        free(error)
    return action()

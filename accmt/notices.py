"""Channel for warnings: any code can report here, and the display of the training prints it.

During a training all processes may warn and the main one prints. Outside of one it is a Python warning.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from accmt.tracebacks import is_ours

Listener = Callable[[str], None]


def _as_python(text: str) -> None:
    frame, level = inspect.currentframe(), 1
    while frame is not None and is_ours(frame.f_code):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, stacklevel=level)


_listeners: list[Listener] = [_as_python]


def warn(text: str) -> None:
    """Warn the person who runs the training."""
    _listeners[-1](text)


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Send warnings given within the block, on any thread, to a listener."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextmanager
def without_information() -> Iterator[None]:
    """Suppress the messages that libraries log below the level of a warning."""
    former = logging.root.manager.disable
    logging.disable(max(former, logging.INFO))
    try:
        yield
    finally:
        logging.disable(former)

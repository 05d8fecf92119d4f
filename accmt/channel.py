"""The channel of warnings. Whoever finds something out says it here; the display of the training prints it.

While a training runs, all processes carry on alike and the main one prints. Outside of one a warning is Python's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Listener = Callable[[str], None]


def _as_python(text: str) -> None:
    warnings.warn(text, stacklevel=4)


_listeners: list[Listener] = [_as_python]


def warn(text: str) -> None:
    """Say something that whoever runs the training should know."""
    _listeners[-1](text)


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Let a listener have what is said in the block, on whichever thread."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)

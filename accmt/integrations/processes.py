"""The processes of a loop that accmt did not start: which one is the main, and what it found. Does not import torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

_T = TypeVar("_T")


def count() -> int:
    """Return the number of processes that can exchange values: those of torch's default group."""
    group = _group()
    return 1 if group is None else int(group.get_world_size())


def is_main() -> bool:
    """Return whether this is the main process: of torch's default group, else by the environment variable RANK."""
    group = _group()
    return (os.environ.get("RANK", "0") == "0") if group is None else bool(group.get_rank() == 0)


def from_main(action: Callable[[], _T]) -> _T:
    """Run an action on the main process and return its result on all, which must call this together.

    Without a group, each process runs it.

    Raises:
        RuntimeError: On the other processes, if it raised; on the main process, an exception keeps its type.
    """
    group = _group()
    if group is None or group.get_world_size() == 1:
        return action()
    outcome: list[tuple[str | None, Any]] = [(None, None)]
    error: Exception | None = None
    if group.get_rank() == 0:
        try:
            outcome = [(None, action())]
        except Exception as raised:
            error, outcome = raised, [(f"{type(raised).__name__}: {raised}", None)]
    group.broadcast_object_list(outcome)
    if error is not None:
        raise error
    [(text, value)] = outcome
    if text is not None:
        raise RuntimeError(f"the main process failed: {text}")
    return value  # type: ignore[no-any-return]


def acts() -> bool:
    """Return whether this process writes, or learns from the main process what it has written."""
    return count() > 1 or is_main()


def _group() -> Any | None:
    """Return torch.distributed if it is imported and initialized."""
    module = sys.modules.get("torch.distributed")
    if module is None or not module.is_available() or not module.is_initialized():
        return None
    return module

"""Actions on all processes, such that all succeed or all know that one failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import PartialState
from torch import distributed as dist

_T = TypeVar("_T")

# The participating processes; None for the default group of all.
Group = dist.ProcessGroup | None


class Failed(Exception):
    """An action failed on at least one process; the message says where and why."""


class FailedElsewhere(RuntimeError):
    """An action failed on another process, which raised the error."""


def everywhere(action: Callable[[], _T], group: Group = None) -> list[_T]:
    """Run an action on every process and return the results of all, in rank order.

    Raises:
        Failed: On every process, if it raised on any; the exception of this process, if any, is its cause.
    """
    result: Any = None
    error: Exception | None = None
    try:
        result = action()
    except Exception as raised:
        error = raised
    state = PartialState()
    message = None if error is None else f"{type(error).__name__}: {error}"
    outcomes: list[Any] = [(message, result)]
    if state.num_processes > 1:
        outcomes = [None] * state.num_processes
        dist.all_gather_object(outcomes, (message, result), group=group)
    failures = [f"process {rank}: {text}" for rank, (text, _) in enumerate(outcomes) if text is not None]
    if failures:
        text = "; ".join(failures) if state.num_processes > 1 else str(message)
        raise Failed(text) from error
    return [value for _, value in outcomes]


def from_each(action: Callable[[], _T]) -> None:
    """Run an action on every process; an exception keeps its type on the process that raised it.

    Raises:
        Failed: On the other processes, if it raised on any.
    """
    try:
        everywhere(action)
    except Failed as failure:
        if failure.__cause__ is None:
            raise
        raise failure.__cause__ from None


def on_main(action: Callable[[], _T], group: Group = None) -> _T:
    """Run an action on the main process and return its result on all.

    Raises:
        Failed: On every process, if it raised; the exception is the cause on the main process.
    """
    state = PartialState()
    result: Any = None
    error: Exception | None = None
    if state.is_main_process:
        try:
            result = action()
        except Exception as raised:
            error = raised
    shared = [None if error is None else f"{type(error).__name__}: {error}", result]
    if state.num_processes > 1:
        dist.broadcast_object_list(shared, group=group)
    if shared[0] is not None:
        raise Failed(shared[0]) from error
    return shared[1]  # type: ignore[no-any-return]


def from_main(action: Callable[[], _T]) -> _T:
    """Run an action on the main process and return its result on all; an exception keeps its type there.

    Raises:
        Failed: On the other processes, if it raised.
    """
    try:
        return on_main(action)
    except Failed as failure:
        if failure.__cause__ is None:
            raise
        raise failure.__cause__ from None

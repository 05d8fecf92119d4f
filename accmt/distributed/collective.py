"""Collectives: actions on all processes, such that all succeed or all know that one failed.

Everything on which processes agree goes through here, except the heartbeat, which waits for nothing. Each function
must be called on all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from accelerate import PartialState
from torch import distributed as dist

_T = TypeVar("_T")

# The participating processes; None for the default group of all.
Group = dist.ProcessGroup | None


class Failed(Exception):
    """An action failed on at least one process; the message says where and why.

    Its cause is the exception of this process; it has none if the action failed only on others.
    """


def everywhere(action: Callable[[], _T], group: Group = None) -> list[_T]:
    """Run an action on every process and return the results of all, in rank order.

    Raises:
        Failed: On every process, if it raised on any.
    """
    result, error = _tried(action)
    outcomes = [(_described(error), result)]
    count = PartialState().num_processes
    if count > 1:
        outcomes = outcomes * count
        dist.all_gather_object(outcomes, outcomes[0], group=group)
    place = "process {}: " if count > 1 else ""
    failures = [place.format(rank) + text for rank, (text, _) in enumerate(outcomes) if text is not None]
    if failures:
        raise Failed("; ".join(failures)) from error
    return [value for _, value in outcomes]


def on_main(action: Callable[[], _T], group: Group = None) -> _T:
    """Run an action on the main process and return its result on all.

    Raises:
        Failed: On every process, if it raised.
    """
    state = PartialState()
    result, error = _tried(action) if state.is_main_process else (None, None)
    outcome: list[tuple[str | None, Any]] = [(_described(error), result)]
    if state.num_processes > 1:
        dist.broadcast_object_list(outcome, group=group)
    [(text, value)] = outcome
    if text is not None:
        raise Failed(text) from error
    return value  # type: ignore[no-any-return]


def from_each(action: Callable[[], _T]) -> list[_T]:
    """Do the same as `everywhere`, but an exception keeps its type on each process that raised it."""
    with _own_errors():
        return everywhere(action)


def from_main(action: Callable[[], _T]) -> _T:
    """Do the same as `on_main`, but an exception keeps its type on the main process."""
    with _own_errors():
        return on_main(action)


def to_main(value: _T) -> list[_T] | None:
    """Return the values of all processes, in rank order, on the main process; None elsewhere."""
    state = PartialState()
    if state.num_processes == 1:
        return [value]
    values: list[Any] | None = [None] * state.num_processes if state.is_main_process else None
    dist.gather_object(value, values)
    return values


def agreed(value: _T) -> _T:
    """Return the main process's value."""
    return on_main(lambda: value)


def raise_on_all(error: Exception | None) -> None:
    """Raise the error of this process, if it has one; if only others have one, raise `Failed`."""

    def fail() -> None:
        if error is not None:
            raise error

    from_each(fail)


def _tried(action: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return action(), None
    except Exception as error:
        return None, error


def _described(error: Exception | None) -> str | None:
    return None if error is None else f"{type(error).__name__}: {error}"


@contextmanager
def _own_errors() -> Iterator[None]:
    """Raise the cause of a failure, if it has one, instead of it."""
    try:
        yield
    except Failed as failure:
        if failure.__cause__ is None:
            raise
        raise failure.__cause__ from None

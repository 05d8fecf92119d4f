"""Decorators that run a function on one process only; on the others it does nothing and returns None.

    class Report(Callback):
        @on_main_process
        def on_epoch_end(self):
            print(self.state.additional_metrics)

    @on_process(1)
    def describe(): ...

The process index is looked up at every call, so a function may be decorated, and called, before a process group
exists; no process group is created here. A decorated function must not wait for other processes: no gather, no
reduce. Put `@staticmethod` and `@classmethod` above these decorators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from inspect import iscoroutinefunction
from typing import Any, ParamSpec, TypeVar, overload

from accmt.config.errors import must_be

__all__ = ["on_last_process", "on_local_main_process", "on_local_process", "on_main_process", "on_process"]

P = ParamSpec("P")
T = TypeVar("T")
Decorator = Callable[[Callable[P, T]], Callable[P, T | None]]


@dataclass(frozen=True, slots=True)
class _Place:
    """Position of this process: its global index, its index on its machine, and the number of processes."""

    index: int
    local_index: int
    count: int


@overload
def on_main_process(function: Callable[P, T], /) -> Callable[P, T | None]: ...
@overload
def on_main_process() -> Decorator[P, T]: ...
def on_main_process(function: Callable[..., Any] | None = None, /) -> Any:
    """Run on the main process (index 0). Usable with or without parentheses."""
    return _on("on_main_process", lambda place: place.index == 0, function)


@overload
def on_local_main_process(function: Callable[P, T], /) -> Callable[P, T | None]: ...
@overload
def on_local_main_process() -> Decorator[P, T]: ...
def on_local_main_process(function: Callable[..., Any] | None = None, /) -> Any:
    """Run on the first process of every machine. Usable with or without parentheses."""
    return _on("on_local_main_process", lambda place: place.local_index == 0, function)


@overload
def on_last_process(function: Callable[P, T], /) -> Callable[P, T | None]: ...
@overload
def on_last_process() -> Decorator[P, T]: ...
def on_last_process(function: Callable[..., Any] | None = None, /) -> Any:
    """Run on the last process, which may be the only one. Usable with or without parentheses."""
    return _on("on_last_process", lambda place: place.index == place.count - 1, function)


def on_process(process_index: int) -> Decorator[P, T]:
    """Run on the process with this global index, counted from 0; on none if there are fewer processes.

    Raises:
        TypeError, ValueError: If `process_index` is not a valid index.
    """
    wanted = _index("on_process", "process_index", process_index)
    decorator: Decorator[P, T] = _on("on_process", lambda place: place.index == wanted)
    return decorator


def on_local_process(local_process_index: int) -> Decorator[P, T]:
    """Run on the process with this index on every machine, counted from 0; not on machines with fewer processes.

    Raises:
        TypeError, ValueError: If `local_process_index` is not a valid index.
    """
    wanted = _index("on_local_process", "local_process_index", local_process_index)
    decorator: Decorator[P, T] = _on("on_local_process", lambda place: place.local_index == wanted)
    return decorator


def _on(name: str, here: Callable[[_Place], bool], function: Callable[..., Any] | None = None) -> Any:
    """Decorate the function, or return a decorator if there is none."""
    return partial(_decorated, name, here) if function is None else _decorated(name, here, function)


def _decorated(name: str, here: Callable[[_Place], bool], function: Callable[P, T]) -> Callable[P, T | None]:
    if isinstance(function, staticmethod | classmethod):
        raise TypeError(f"@{name} is above @{type(function).__name__}: put it below")
    if not callable(function) or isinstance(function, type):
        raise TypeError(f"@{name}: the decorated object {must_be('a function or a method', function)}")
    if iscoroutinefunction(function):

        @wraps(function)
        async def wait(*args: P.args, **kwargs: P.kwargs) -> Any:
            return await function(*args, **kwargs) if here(_place()) else None

        return wait  # type: ignore[return-value]  # a coroutine function stays a coroutine function

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T | None:
        return function(*args, **kwargs) if here(_place()) else None

    return call


def _index(decorator: str, argument: str, given: object) -> int:
    if callable(given):
        raise TypeError(f"@{decorator} needs the index of a process: @{decorator}({argument}=1)")
    if isinstance(given, bool) or not isinstance(given, int):
        raise TypeError(f"@{decorator}: {argument} {must_be('a whole number from 0', given)}")
    if given < 0:
        raise ValueError(f"@{decorator}: {argument} {must_be('a whole number from 0', given)}")
    return given


def _place() -> _Place:
    """Return this process's place, from Accelerate if it is initialized, else from the launcher's environment.

    Asking Accelerate earlier would create the process group, which the trainer creates with its own settings.
    """
    from accelerate import PartialState
    from accelerate.state import is_initialized
    from accelerate.utils import get_cpu_distributed_information

    if is_initialized():
        state = PartialState()
        return _Place(state.process_index, state.local_process_index, state.num_processes)
    told = get_cpu_distributed_information()
    return _Place(told.rank, told.local_rank, told.world_size)

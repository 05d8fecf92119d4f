"""Tracebacks of mistakes and of Ctrl-C, without the frames of accmt, which are of no use to its users.

A mistake is an error that a `raise` statement of accmt raised, such as ConfigError. Errors of the user's code, which
accmt called, lose the frames of accmt as well. All other errors keep all frames: those of other libraries that accmt
called, and defects of accmt. Ctrl-C, which may come anywhere, shows the frames of the user alone.
ACCMT_FULL_TRACEBACK=1 keeps all frames of all.
"""

from __future__ import annotations

import contextlib
import dis
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from types import CodeType, FrameType, TracebackType
from typing import Any, TypeVar, cast

_Function = TypeVar("_Function", bound=Callable[..., Any])

_PACKAGE = os.path.join(os.path.dirname(__file__), "")
_WRAPPERS = (__file__, *(os.path.join(_PACKAGE, *path) for path in (["earlier.py"], ["config", "errors.py"])))
_STANDARD_LIBRARY = os.path.join(os.path.dirname(os.__file__), "")
_INSTALLED = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))
_RAISE = dis.opmap["RAISE_VARARGS"]
_MARK, _LAST_LINE = "accmt_mistake", "accmt_last_line"
_IN_NOTEBOOKS = "_render_traceback_"  # IPython calls it


def concise(function: _Function) -> _Function:
    """Make a public function raise mistakes with only the frames of the user's code."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            shorten(error)
            raise  # without an operand, it adds no frame

    return cast(_Function, call)


def is_mistake(error: BaseException) -> bool:
    """Return whether accmt raised an error to report a mistake."""
    parts = _parts(error.__traceback__)
    if not parts or isinstance(error, AssertionError):
        return False
    code, instruction = parts[-1].tb_frame.f_code, parts[-1].tb_lasti
    return hasattr(error, _MARK) or (is_ours(code) and code.co_code[instruction] == _RAISE)


def is_ours(code: CodeType) -> bool:
    """Return whether code belongs to accmt."""
    return code.co_filename.startswith(_PACKAGE)


def end_with(error: KeyboardInterrupt, line: str) -> None:
    """If an error, or another Ctrl-C while it is handled, ends the process, print this line on stderr instead of the
    traceback, or nothing if it is empty. In a notebook, show it below the cell instead of the traceback."""
    vars(error).update({_LAST_LINE: line, _MARK: True})
    if not _shows_all():
        vars(error)[_IN_NOTEBOOKS] = lambda: [line or type(error).__name__]
    former = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        first: BaseException | None = error
        while isinstance(first, KeyboardInterrupt) and not hasattr(first, _LAST_LINE):
            first = first.__context__
        last = getattr(first, _LAST_LINE, None)
        if last is None or _shows_all():
            former(kind, error, trace)
        elif last:
            sys.stderr.write(f"{last}\n")

    sys.excepthook = hook


def shorten(error: BaseException) -> None:
    """Remove the frames of accmt from a mistake, or from an error of the user's code and those that led to it."""
    if _shows_all():
        return
    parts = _parts(error.__traceback__)
    if is_mistake(error) or all(part.tb_frame.f_code.co_filename in _WRAPPERS for part in parts):  # wrong arguments
        vars(error)[_MARK] = True
        _leave_out(error, _is_ours_or_ends_blocks)
    elif isinstance(error, KeyboardInterrupt):
        _leave_out(error, lambda code: not _is_users(code))
    for one in _chain(error):
        if _is_of_user(one):
            _leave_out(one, _is_ours_or_ends_blocks)


def print_shortened(error: BaseException) -> None:
    """Print an error on stderr as if the public function that is running had raised it."""
    shorten(error)
    frame: FrameType | None = inspect.currentframe()
    while frame is not None and not _shows_all():
        if _is_users(frame.f_code):
            error.__traceback__ = TracebackType(error.__traceback__, frame, frame.f_lasti, frame.f_lineno)
        frame = frame.f_back
    traceback.print_exception(error)


def _is_ours_or_ends_blocks(code: CodeType) -> bool:
    return is_ours(code) or code.co_filename == contextlib.__file__  # which ends our context managers


def _leave_out(error: BaseException, is_unwanted: Callable[[CodeType], bool]) -> None:
    parts, error.__traceback__ = _parts(error.__traceback__), None
    for part in reversed(parts):
        if not is_unwanted(part.tb_frame.f_code):
            error.__traceback__ = TracebackType(error.__traceback__, part.tb_frame, part.tb_lasti, part.tb_lineno)


def _is_of_user(error: BaseException) -> bool:
    """Return whether the user's code, called by accmt or in a worker, raised an error or called what raised it."""
    codes = [part.tb_frame.f_code for part in _parts(error.__traceback__)]
    ours = [place for place, code in enumerate(codes) if is_ours(code)]
    if not ours:
        return False
    of_worker = codes[-1].co_name == "reraise" and not is_ours(
        codes[-1]
    )  # torch's; the worker's frames are in the text
    return of_worker or any(map(_is_users, codes[ours[-1] + 1 :]))


def _is_users(code: CodeType) -> bool:
    file = code.co_filename
    return not (
        is_ours(code) or file.startswith((_STANDARD_LIBRARY, "<frozen")) or any(folder in file for folder in _INSTALLED)
    )


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and those that led to it."""
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and not any(one is known for known in found):
            found.append(one)
            waiting += [one.__cause__, one.__context__]
    return found


def _parts(trace: TracebackType | None) -> list[TracebackType]:
    parts = []
    while trace is not None:
        parts.append(trace)
        trace = trace.tb_next
    return parts


def _shows_all() -> bool:
    return os.environ.get("ACCMT_FULL_TRACEBACK", "0") not in ("", "0")

"""Tracebacks of mistakes and of Ctrl-C, without the frames of accmt, which are of no use to its users.

A mistake is an error that a `raise` statement of accmt raised, such as ConfigError. All other errors keep all frames:
those of the user's code, of other libraries, and defects of accmt.
"""

from __future__ import annotations

import contextlib
import dis
import os
import sys
from collections.abc import Callable
from functools import wraps
from types import CodeType, TracebackType
from typing import ParamSpec, TypeVar

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

FULL = "ACCMT_FULL_TRACEBACK"
"""Environment variable that keeps all frames if it is set to anything but 0."""

_PACKAGE = os.path.join(os.path.dirname(__file__), "")
_RAISE = dis.opmap["RAISE_VARARGS"]
_MARK, _LAST_LINE = "_accmt_mistake", "_accmt_last_line"


def concise(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Make a public function raise mistakes with only the frames of the user's code."""

    @wraps(function)
    def call(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            _shorten(error)
            raise  # without an operand, it adds no frame

    return call


def is_mistake(error: BaseException) -> bool:
    """Return whether accmt raised an error to report a mistake."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None or isinstance(error, AssertionError):
        return False
    code = last.tb_frame.f_code
    return hasattr(error, _MARK) or (is_ours(code) and code.co_code[last.tb_lasti] == _RAISE)


def is_ours(code: CodeType) -> bool:
    """Return whether code belongs to accmt."""
    return code.co_filename.startswith(_PACKAGE)


def end_with(error: KeyboardInterrupt, line: str) -> None:
    """Print a line on stderr instead of the traceback if an error, or another Ctrl-C while it is handled, ends the
    process; print nothing if it is empty."""
    setattr(error, _LAST_LINE, line)
    setattr(error, _MARK, True)
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


def _shorten(error: BaseException) -> None:
    """Remove the frames of accmt from a mistake that leaves a public function."""
    trace = error.__traceback__
    is_call = trace is not None and trace.tb_next is None  # the function does not take these arguments
    if is_call or is_mistake(error):
        setattr(error, _MARK, True)
        if not _shows_all():
            error.__traceback__ = _of_others(trace)


def _of_others(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback without the frames of accmt."""
    if trace is None:
        return None
    rest = _of_others(trace.tb_next)
    code = trace.tb_frame.f_code
    if is_ours(code) or code.co_filename == contextlib.__file__:  # which calls the ends of our context managers
        return rest
    return TracebackType(rest, trace.tb_frame, trace.tb_lasti, trace.tb_lineno)


def _shows_all() -> bool:
    return os.environ.get(FULL, "0") not in ("", "0")

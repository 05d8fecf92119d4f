"""Tracebacks of mistakes and of Ctrl-C, without the frames of accmt, which are of no use to its users.

A mistake is an error that a `raise` statement of accmt raised, such as ConfigError. All other errors keep all frames:
those of the user's code, of other libraries, and defects of accmt. ACCMT_FULL_TRACEBACK=1 keeps all frames of all.
"""

from __future__ import annotations

import contextlib
import dis
import os
import sys
from collections.abc import Callable
from functools import wraps
from types import CodeType, TracebackType
from typing import Any, TypeVar, cast

_Function = TypeVar("_Function", bound=Callable[..., Any])

_PACKAGE = os.path.join(os.path.dirname(__file__), "")
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
            _shorten(error)
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


def _shorten(error: BaseException) -> None:
    parts = _parts(error.__traceback__)
    if _shows_all() or not (is_mistake(error) or len(parts) == 1):  # 1: the function does not take these arguments
        return
    vars(error)[_MARK] = True
    error.__traceback__ = None
    for part in reversed(parts):
        code = part.tb_frame.f_code
        if not is_ours(code) and code.co_filename != contextlib.__file__:  # which ends our context managers
            error.__traceback__ = TracebackType(error.__traceback__, part.tb_frame, part.tb_lasti, part.tb_lineno)


def _parts(trace: TracebackType | None) -> list[TracebackType]:
    parts = []
    while trace is not None:
        parts.append(trace)
        trace = trace.tb_next
    return parts


def _shows_all() -> bool:
    return os.environ.get("ACCMT_FULL_TRACEBACK", "0") not in ("", "0")

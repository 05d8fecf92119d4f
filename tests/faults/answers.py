"""What comes of hostile input: an answer in words or something that is made, at what cost, and what is done for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from accmt import ConfigError, RuleError

_DOES = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "os.remove", "os.rename", "os.mkdir")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_watching: list[list[Any]] = []


def is_made(make: Callable[[], object]) -> bool:
    """Whether something could be made, and not a ConfigError or a RuleError said in words why not. Anything else that
    is raised goes on to the caller."""
    try:
        make()
    except (ConfigError, RuleError) as error:
        if not str(error):
            raise AssertionError("refused without a word") from error
        return False
    return True


@contextmanager
def watched() -> Iterator[list[Any]]:
    """What is run, written, moved or deleted meanwhile."""
    _watching.append([])
    try:
        yield _watching[-1]
    finally:
        _watching.pop()


@contextmanager
def counted() -> Iterator[list[int]]:
    """How many calls of functions are made meanwhile."""
    calls, former = [0], sys.getprofile()

    def call(frame: Any, event: str, argument: Any) -> None:
        calls[0] += event in ("call", "c_call")

    sys.setprofile(call)
    try:
        yield calls
    finally:
        sys.setprofile(former)


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES
    if writes or event in _DOES:
        _watching[-1].append((event, arguments[:1]))


sys.addaudithook(_heard)

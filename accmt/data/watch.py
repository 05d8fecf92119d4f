"""What workers start with, and whether it has changed since: workers outlive a pass over the data only if it has not.

A fingerprint shows what would be pickled of objects, and what the user's functions and classes among them use:
defaults, closures, attributes of classes, and global variables of the user's modules, but not those of libraries.
"""

from __future__ import annotations

import dis
import inspect
import os
import pickle
import sys
import time
import zlib
from collections.abc import Iterator
from functools import cache
from types import CellType, CodeType, FunctionType, ModuleType, SimpleNamespace
from typing import Any

import torch

from accmt._compat import ABC_STATE

# A start of processes that follows a change costs about as much as looking this long, in seconds of this thread.
_LONGEST = 0.2
# Arrays that are not looked at, in bytes: some are copied first, or lie in a file.
_MOST = 256 * 2**20
# Data that change in every pass are not watched any longer after so many starts.
_STARTS = 3


class Watch:
    """Objects that the workers of a loader start with, in this process or in a worker.

    Attributes:
        reports: The number of workers that have reported that nothing has changed until their last batch of this pass.
        is_last, is_ending: In a worker: this batch is its last of a pass, and the worker will end.
    """

    is_last = is_ending = False

    def __init__(self, *values: Any) -> None:
        self._values = values
        self._starts = self.reports = 0
        self._then: int | None = None

    def begin(self) -> bool:
        """Note what workers start with; return whether they may be kept."""
        self._starts += 1
        self.begin_worker(0)
        return self._then is not None

    def begin_worker(self, worker: int) -> None:
        """Note what this worker starts with."""
        self._then = fingerprint(*self._values) if self._starts <= _STARTS else None

    def is_same(self) -> bool:
        """Return whether nothing has changed since."""
        return self._then is not None and fingerprint(*self._values) == self._then

    def report(self) -> bool:
        """Return whether a worker reports that nothing has changed there."""
        return self.is_last and not self.is_ending and self.is_same()


def fingerprint(*values: Any) -> int | None:
    """Return a fingerprint of objects, the environment and the working directory; None if there is none, or if it
    would take long."""
    value, until = 0, time.thread_time() + _LONGEST

    def write(part: Any) -> None:
        nonlocal value
        if time.thread_time() > until:
            raise OverflowError
        value = zlib.crc32(part.raw() if isinstance(part, pickle.PickleBuffer) else part, value)

    try:
        walk = _Walk(SimpleNamespace(write=write), 5, buffer_callback=write)
        walk.dump([values, dict(os.environ), os.getcwd()])
    except Exception:  # objects may raise anything while they are pickled
        return None
    return value


class _Walk(pickle.Pickler):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._seen: dict[int, Any] = {}  # holds them, so that no other object gets the id of one

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, type | FunctionType | ModuleType) and value is not tuple:
            used = () if id(value) in self._seen else _used(value)
            self._seen[id(value)] = value
            return tuple, ([id(value), *used],)
        size = getattr(value, "nbytes", 0)
        if isinstance(size, int) and size > _MOST:
            raise OverflowError
        if type(value) is torch.Tensor and value.layout is torch.strided and value.dtype is not torch.bfloat16:
            return tuple, ([value.requires_grad, value.detach().numpy()],)  # torch would copy it
        return NotImplemented


def _used(value: type | FunctionType | ModuleType) -> Iterator[Any]:
    """Yield what a class or a function of the user depends on."""
    if isinstance(value, ModuleType) or _is_of_library(value.__module__):
        return
    if isinstance(value, type):
        yield value.__bases__
        for name, item in vars(value).items():
            item = getattr(item, "__func__", item)  # of a static or class method
            item = (item.fget, item.fset) if isinstance(item, property) else item
            is_system = name.startswith(("__", ABC_STATE)) or inspect.isdatadescriptor(item)
            if isinstance(item, FunctionType) or not is_system:
                yield name, item
        return
    yield value.__defaults__, value.__kwdefaults__, vars(value)
    yield [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
    names, globally = _names(value.__code__)
    for name in sorted(globally & value.__globals__.keys()):
        item = value.__globals__[name]
        yield name, item
        if isinstance(item, ModuleType) and not _is_of_library(item.__name__):
            yield [(inner, vars(item)[inner]) for inner in sorted(names & vars(item).keys())]


@cache
def _names(code: CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names that code uses, and those of them that it looks up among global variables."""
    inner = [_names(part) for part in code.co_consts if isinstance(part, CodeType)]
    globally = (each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    used = frozenset(code.co_names).union(*(names for names, _ in inner))
    return used, frozenset(globally).union(*(names for _, names in inner))


@cache
def _is_of_library(name: str | None) -> bool:
    file = getattr(sys.modules.get(str(name)), "__file__", None) or ""
    is_standard = str(name).partition(".")[0] in (*sys.stdlib_module_names, "accmt")
    return is_standard or "site-packages" in file or "dist-packages" in file

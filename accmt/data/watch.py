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
from itertools import accumulate
from types import CellType, CodeType, FunctionType, ModuleType, SimpleNamespace
from typing import Any

import torch

from accmt._compat import ABC_STATE

# A start of processes that follows a change costs about as much as looking this long, in seconds of this thread.
_LONGEST = 0.2
# Arrays that are not looked at, in bytes: some are copied first, or lie in a file.
_MOST = 256 * 2**20
_Cached = type(cache(len))
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
        is_code = isinstance(value, type | FunctionType | ModuleType | _Cached) and value is not tuple
        if is_code or _chooses_state(type(value)):
            used = () if id(value) in self._seen else _used(value) if is_code else _whole(value)
            self._seen[id(value)] = value
            return tuple, ([id(value), *used],)
        size = getattr(value, "nbytes", 0)
        if isinstance(size, int) and size > _MOST:
            raise OverflowError
        if type(value) is torch.Tensor and value.layout is torch.strided and value.dtype is not torch.bfloat16:
            return tuple, ([value.requires_grad, value.detach().numpy()],)  # torch would copy it
        return NotImplemented


def _chooses_state(kind: type) -> bool:
    """Return whether a class of the user chooses what is pickled; forked workers have it all."""
    return isinstance(own := kind.__getstate__, FunctionType) and not _is_of_library(own.__module__)


def _whole(value: Any) -> Iterator[Any]:
    yield from value.__reduce_ex__(5)
    yield object.__getstate__(value)


def _used(value: Any) -> Iterator[Any]:
    """Yield what a class or a function of the user depends on."""
    if isinstance(value, ModuleType) or _is_of_library(value.__module__):
        return
    if isinstance(value, _Cached):
        yield value.cache_info().misses, value.__wrapped__
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
    names, globally, imported = _names(value.__code__)
    modules = set[ModuleType]()
    for name in sorted(globally & value.__globals__.keys()):
        item = value.__globals__[name]
        yield name, item
        yield from _of_module(item, names, modules)
    for package in ("", *accumulate((value.__globals__.get("__package__") or "").split("."), "{}.{}".format)):
        for name in sorted(imported):
            yield from _of_module(sys.modules.get(f"{package}.{name}".strip(".")), names, modules)


def _of_module(module: Any, names: frozenset[str], done: set[ModuleType]) -> Iterator[Any]:
    """Yield the variables with these names of a module of the user, and of the modules in it."""
    if not isinstance(module, ModuleType) or module in done or _is_of_library(module.__name__):
        return
    done.add(module)
    for name in sorted(names & vars(module).keys()):
        item = vars(module)[name]
        yield name, item
        yield from _of_module(item, names, done)


@cache
def _names(code: CodeType) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Return the names that code uses, those of them that it looks up among global variables, and the modules that it
    imports."""
    parts = [_names(part) for part in code.co_consts if isinstance(part, CodeType)]
    globally, imported = set[str](), set[str]()
    for each in dis.get_instructions(code):
        if each.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            globally.add(each.argval)
        elif each.opname == "IMPORT_NAME":
            imported.update(accumulate(each.argval.split("."), "{}.{}".format))
    own = frozenset(code.co_names), frozenset(globally), frozenset(imported)
    used, globally_used, imports = (frozenset().union(*each) for each in zip(own, *parts, strict=True))
    return used, globally_used, imports


@cache
def _is_of_library(name: str | None) -> bool:
    file = getattr(sys.modules.get(str(name)), "__file__", None) or ""
    is_standard = str(name).partition(".")[0] in (*sys.stdlib_module_names, "accmt")
    return is_standard or "site-packages" in file or "dist-packages" in file

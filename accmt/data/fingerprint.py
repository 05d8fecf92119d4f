"""Fingerprints of objects in memory, which differ once something changes that the objects reach.

That is what would be pickled of them, and what the user's functions and classes among them use: defaults, closures,
attributes of classes, and global variables of the user's modules. Global variables of libraries are not looked at.
"""

from __future__ import annotations

import dis
import os
import pickle
import sys
import time
import zlib
from collections.abc import Iterator
from functools import cache
from types import CellType, CodeType, FunctionType, GetSetDescriptorType, MemberDescriptorType, ModuleType
from typing import Any

import torch

# Looking at more bytes, or for longer, in seconds of this thread, is not worth the start of a process.
_MOST = 256 * 2**20
_LONGEST = 0.2
_SLOTS = (GetSetDescriptorType, MemberDescriptorType)
_EMPTY = CellType()


def fingerprint(*values: Any) -> int | None:
    """Return a fingerprint of objects, the environment and the working directory; None if there is none, or only
    after a long time."""
    digest = _Digest()
    try:
        _Walk(digest).dump([values, dict(os.environ), os.getcwd()])
    except Exception:  # objects may raise anything while they are pickled
        return None
    return digest.value


class _Digest:
    """File that keeps a checksum of what is written."""

    def __init__(self) -> None:
        self.value, self._size, self._began = 0, 0, time.thread_time()

    def write(self, part: Any) -> None:
        self.expect(memoryview(part).nbytes)
        self.value = zlib.crc32(part, self.value)

    def write_buffer(self, buffer: pickle.PickleBuffer) -> None:
        self.write(buffer.raw())

    def expect(self, size: int) -> None:
        """Count bytes.

        Raises:
            OverflowError: They are too many, or it takes too long.
        """
        self._size += size
        if self._size > _MOST or time.thread_time() - self._began > _LONGEST:
            raise OverflowError


class _Walk(pickle.Pickler):
    def __init__(self, digest: _Digest) -> None:
        super().__init__(digest, 5, buffer_callback=digest.write_buffer)
        self._digest = digest
        self._seen: dict[int, Any] = {}  # holds them, so that no other object gets the id of one

    def reducer_override(self, value: Any) -> Any:
        if value is tuple:
            return NotImplemented
        if isinstance(value, type | FunctionType | ModuleType):
            used = [] if id(value) in self._seen else list(_used(value))
            self._seen[id(value)] = value
            return tuple, ([id(value), *used],)
        if type(value) is torch.Tensor and value.layout is torch.strided and value.dtype is not torch.bfloat16:
            return tuple, ([value.requires_grad, value.detach().numpy()],)  # without the copy that torch makes
        size = getattr(value, "nbytes", 0)
        if isinstance(size, int) and size > _MOST:
            self._digest.expect(size)  # before it is copied
        return NotImplemented


def _used(value: type | FunctionType | ModuleType) -> Iterator[Any]:
    """Yield what a class or a function of the user depends on."""
    if isinstance(value, ModuleType) or _is_of_library(value.__module__):
        return
    if isinstance(value, type):
        yield value.__bases__
        for name, item in vars(value).items():
            item = getattr(item, "__func__", item)  # of a static or class method
            item = [item.fget, item.fset] if isinstance(item, property) else item
            if isinstance(item, list | FunctionType) or not (name.startswith(("__", "_abc_")) or type(item) in _SLOTS):
                yield name, item
        return
    yield value.__defaults__, value.__kwdefaults__, vars(value)
    yield [cell.cell_contents for cell in value.__closure__ or () if cell != _EMPTY]
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
    root = str(name).partition(".")[0]
    file = getattr(sys.modules.get(str(name)), "__file__", None) or ""
    return root in (*sys.stdlib_module_names, "accmt") or "site-packages" in file or "dist-packages" in file

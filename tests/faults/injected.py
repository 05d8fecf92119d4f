"""What goes wrong in a training, from inside of its process: it dies at a certain call, or calls fail.

A fault is a dictionary: `{"kind": "die", "at": 17}` ends the process by SIGKILL just before its 17th operation on a
file; `{"kind": "count"}` only counts them.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import re
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from accmt import Callback
from accmt.checkpoint import publish
from accmt.checkpoint import tensor_files as files

# Each of these changes the disk; besides them, files that are opened below the folder of the training are counted.
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree", "fsync"}

STARTED = "-- the first step --"

_count = 0
_before_start = 0
_started = False


def counted() -> dict[str, int]:
    """Operations on files, all so far, and those before the training started."""
    return {"operations": _count, "before start": _before_start}


def has_started() -> bool:
    """Whether the first step has come."""
    return _started


class _Start(Callback):
    """Says when the first step comes, and notes how many operations came before it."""

    def on_fit_start(self):
        global _before_start, _started
        _before_start, _started = _count, True
        print(STARTED, flush=True)  # noqa: T201  (for the tests)


class _End(Callback):
    """Dies when a checkpoint was reported."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def on_save_checkpoint(self):
        if self.state.num_checkpoints_made == self._number:
            os.kill(os.getpid(), signal.SIGKILL)


class _Pause(Callback):
    """Stands still in a step, for a longer time than any test takes."""

    def __init__(self, step: int, mark: str) -> None:
        super().__init__()
        self._step, self._mark = step, Path(mark)

    def on_before_optimizer_step(self, optimizer):
        if self.state.global_step + 1 == self._step:
            self._mark.touch()
            time.sleep(3600)


_step = 1


class _Steps(Callback):
    """Knows which step is being made, and what belongs to it: its evaluation, its savings, its checkpoint."""

    def on_before_optimizer_step(self, optimizer):
        global _step
        _step = self.state.global_step + 1


class _Failing:
    """Calls that fail as those of a disk do.

    Args:
        call: "write", "manifest", "fsync", "rename" or "mkdir".
        code: The name of the error.
        below: A pattern: what fails is whatever has a path in which it is found.
        first: The first call for each text that is found which fails, from 0.
        lasts: All later ones fail as well.
        steps: Only while these steps are made; None for all.
    """

    def __init__(
        self, call: str, code: str, below: str, first: int, lasts: bool, steps: list[int] | None = None
    ) -> None:
        self._call = call
        self._code = getattr(errno, code)
        self._below, self._first, self._lasts, self._steps = re.compile(below), first, lasts, steps
        self._seen: dict[str, int] = {}

    def put_in(self) -> None:
        match self._call:
            case "write":
                files.save_file = self._around(files.save_file, lambda tensors, path, **_: path)
                torch.save = self._around(torch.save, lambda tensors, path: path)
            case "manifest":
                Path.write_text = self._around(Path.write_text, lambda path, *_, **__: path)
            case "fsync":
                os.fsync = self._around(os.fsync, lambda descriptor: os.readlink(f"/proc/self/fd/{descriptor}"))
            case "rename":
                os.rename = self._around(os.rename, lambda first, second: f"{first} {second}")
                publish._exchange = self._around(publish._exchange, lambda first, second: f"{first} {second}")
            case "mkdir":
                os.mkdir = self._around(os.mkdir, lambda path, *_, **__: path)

    def _around(self, function: Any, path_of: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            path = str(path_of(*arguments, **options))
            match = self._below.search(path)
            if match and (self._steps is None or _step in self._steps):
                seen = self._seen[match[0]] = self._seen.get(match[0], -1) + 1
                if seen == self._first or (seen > self._first and self._lasts):
                    raise OSError(self._code, os.strerror(self._code), path)
            return function(*arguments, **options)

        return call


class _Limit:
    """No file can be longer than that."""

    def __init__(self, size: int, steps: list[int]) -> None:
        self._size = size

    def begin(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._size, resource.RLIM_INFINITY))

    def end(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class _Fill:
    """A disk of its own is full, but for some bytes."""

    def __init__(self, disk: str, leave: int, steps: list[int]) -> None:
        self._filler = Path(disk) / "filler"
        self._leave = leave

    def begin(self) -> None:
        with self._filler.open("wb", buffering=0) as file:
            with suppress(OSError):
                while file.write(bytes(2**16)):
                    pass
            file.truncate(max(0, file.tell() - self._leave))

    def end(self) -> None:
        self._filler.unlink()


class _Unchangeable:
    """Nothing can be added to folders, or removed."""

    def __init__(self, folders: list[str], steps: list[int]) -> None:
        self._folders = folders

    def begin(self) -> None:
        subprocess.run(["chattr", "+i", *self._folders], check=True)

    def end(self) -> None:
        subprocess.run(["chattr", "-i", *self._folders], check=True)


class _During(Callback):
    """A condition that holds while some steps are made, with all that belongs to them."""

    def __init__(self, steps: list[int], condition: Any) -> None:
        super().__init__()
        self._steps, self._condition, self._holds = steps, condition, False

    def on_before_optimizer_step(self, optimizer):
        holds = self.state.global_step + 1 in self._steps
        if holds and not self._holds:
            self._condition.begin()
        elif self._holds and not holds:
            self._condition.end()
        self._holds = holds


def prepare(folder: str, faults: tuple[dict[str, Any], ...]) -> list[Callback]:
    """Prepare what is to go wrong in this process, and give the callbacks that belong to it."""
    callbacks: list[Callback] = [_Start()]
    for fault in faults:
        kind, arguments = fault["kind"], {name: value for name, value in fault.items() if name != "kind"}
        if kind in _CALLBACKS:
            callbacks.append(_CALLBACKS[kind](**arguments))
        elif kind in _CONDITIONS:
            callbacks.append(_During(fault["steps"], _CONDITIONS[kind](**arguments)))
        elif kind == "fail":
            _Failing(**arguments).put_in()
            callbacks.append(_Steps())
        else:
            _AT_ONCE[kind](folder, **arguments)
    return callbacks


def _watch(folder: str, last: int, removal: int = 0) -> None:
    """Count the operations on files, from a removal of a directory on if one is given, and die before the last one."""
    removals = 0

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        global _count
        nonlocal removals
        if event == "os.rename" and "/.trash-" in os.fsdecode(arguments[1]):
            removals += 1
        if removals < removal:
            return
        if event in _CHANGES or (event == "open" and _is_below(arguments[0], folder)):
            _count += 1
            if _count == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(heard)
    fsync = os.fsync

    def told(descriptor: int) -> None:
        heard("fsync", ())
        fsync(descriptor)

    os.fsync = told


def _lose_rights(folder: str) -> None:
    """From now on permissions bind this process as they bind any user, also where it is the superuser's."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # the version of what follows, and this process
    if libc.capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "the rights of the superuser could not be given up")


def _limit_memory(folder: str, size: int) -> None:
    """No more memory than that, beside what is taken already."""
    held = int(re.search(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (held + size, held + size))


def _turn_clock(folder: str) -> None:
    """The clock runs back."""
    time.time = itertools.count(1e9, -1e6).__next__


def _is_below(path: Any, folder: str) -> bool:
    try:
        return os.fsdecode(path).startswith(folder)
    except TypeError:
        return False  # a descriptor


_CALLBACKS: dict[str, Any] = {"die after checkpoint": _End, "pause": _Pause}
_CONDITIONS: dict[str, Any] = {"limit": _Limit, "fill": _Fill, "unchangeable": _Unchangeable}
_AT_ONCE: dict[str, Any] = {
    "count": lambda folder: _watch(folder, 0),
    "die": lambda folder, at: _watch(folder, at),
    "die pruning": lambda folder, at, which: _watch(folder, at, which),
    "ordinary user": _lose_rights,
    "memory": _limit_memory,
    "clock": _turn_clock,
}

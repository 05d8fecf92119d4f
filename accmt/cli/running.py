"""Whether a training is at work in a folder, found out without taking its lock, even for a moment."""

from __future__ import annotations

import os
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

from accmt.checkpoint import lock

# struct flock: its first fields are what is asked, and where the kernel answers.
_LINUX = struct.Struct("hhqqi4x")  # type, whence, start, length, process
_BSD = struct.Struct("qqihhi")  # start, length, process, type, whence, system


@dataclass(frozen=True, slots=True)
class AtWork:
    """Whether a training is at work: None where that cannot be told, and `reason` says why.

    `process` is the number of its process, None where that is not known.
    """

    runs: bool | None
    process: int | None = None
    reason: str = ""


def at_work(model_path: Path) -> AtWork:
    """Ask who holds the lock of a `model_path`; nothing is locked or written, and reading rights are enough."""
    if lock.is_held_here(model_path):
        return AtWork(True, os.getpid())  # to open and close the file in its own process would end the lock
    try:
        file = os.open(model_path / lock.LOCK, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except FileNotFoundError:
        return AtWork(False)
    except OSError as error:
        return AtWork(None, reason=_reason(error))
    try:
        holder = _holder(file)
        if holder is None:
            return AtWork(False)
        written = os.pread(file, 20, 0).strip()
    except OSError as error:
        return AtWork(None, reason=_reason(error))
    finally:
        os.close(file)
    # A process of another machine or container has no number here: then what it wrote is all that is known.
    return AtWork(True, holder if holder > 0 else int(written) if written.isdigit() else None)


def _holder(file: int) -> int | None:
    """The process that holds a lock on a file, 0 or less where it has no number here; None if there is none."""
    import fcntl

    if sys.platform == "linux":
        asked = _LINUX.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, process = _LINUX.unpack(fcntl.fcntl(file, fcntl.F_GETLK, asked)[: _LINUX.size])
    else:
        asked = _BSD.pack(0, 0, 0, fcntl.F_WRLCK, os.SEEK_SET, 0)
        _, _, process, kind, _, _ = _BSD.unpack(fcntl.fcntl(file, fcntl.F_GETLK, asked)[: _BSD.size])
    return None if kind == fcntl.F_UNLCK else int(process)


def _reason(error: OSError) -> str:
    return f"{lock.LOCK} cannot be asked: {error.strerror or error}"

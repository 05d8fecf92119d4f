"""Writing through to the disk, also where a file system cannot: then it is said once what is no longer certain."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accmt.channel import warn

# A file system, or a sandbox, that cannot flush says so in one of these ways. All others, such as EIO and ENOSPC, are
# faults. A folder that can be written to may be one that cannot be opened to be read.
_CANNOT = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY, errno.EPERM})
_CANNOT_FOLDERS = _CANNOT | {errno.EBADF, errno.EISDIR, errno.EACCES}

# What is answered where another has the lock of a file. All else, EPERM among them, says that nothing can be locked.
LOCKED = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES})

_said: set[str] = set()


def flush_file(path: Path) -> None:
    """Make the content of a file survive a power cut."""
    with path.open("rb") as file:
        flush(file.fileno(), path)


def flush(descriptor: int, path: Path) -> None:
    """The same for a file that is open."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        _say("files", path.parent, error)


def flush_directory(folder: Path) -> None:
    """Make renames in a directory survive a power cut."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_FOLDERS:
            raise
        _say("folders", folder, error)


@contextmanager
def only_warned(what: str) -> Iterator[None]:
    """Make an error in the block a warning, as it is too late for it: `what` says what was done all the same."""
    try:
        yield
    except Exception as error:
        reason = getattr(error, "strerror", None) or error
        warn(f"{what}: {reason}")


def begin() -> None:
    """Say again what is not certain: another training begins."""
    _said.clear()


def _say(what: str, folder: Path, error: OSError) -> None:
    if what not in _said:
        _said.add(what)
        warn(
            f"the file system of {folder} cannot flush {what} to the disk ({error.strerror or error}): a killed "
            "process loses nothing, but what was written last may not survive a power cut"
        )

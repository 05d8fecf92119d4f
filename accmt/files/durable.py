"""Flushing to disk; where a file system cannot flush, one warning says what may be lost."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accmt.notices import warn
from accmt.rules.reserved_names import TEMPORARY

# Errors by which a file system or sandbox says that it cannot flush. All others, such as EIO and ENOSPC, are faults.
# A folder may be writable and yet not be opened for reading.
_CANNOT = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY, errno.EPERM})
_CANNOT_FOLDERS = _CANNOT | {errno.EBADF, errno.EISDIR, errno.EACCES}

# Errors that mean another process has the lock. All others, including EPERM, mean that locking does not work at all.
LOCKED = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES})

_said: set[str] = set()


def flush_file(path: Path) -> None:
    """Flush a file, so that its content survives a power cut."""
    with path.open("rb") as file:
        flush(file.fileno(), path)


def flush(descriptor: int, path: Path) -> None:
    """Flush an open file."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        _say("files", path.parent, error)


def write_durably(path: Path, text: str) -> None:
    """Replace a file atomically: the text is on the disk when this returns, or the former content still is.

    Raises:
        OSError: It could not be written.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{uuid.uuid4().hex[:12]}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            flush(file.fileno(), path)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    flush_directory(path.parent)


def flush_directory(folder: Path) -> None:
    """Flush a directory, so that renames in it survive a power cut."""
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
    """Turn an error in the block into a warning, as it is too late to fail; `what` says what was done nonetheless."""
    try:
        yield
    except Exception as error:
        reason = getattr(error, "strerror", None) or error
        warn(f"{what}: {reason}")


def forget_warnings() -> None:
    """Reset the warnings already given, because another training begins."""
    _said.clear()


def _say(what: str, folder: Path, error: OSError) -> None:
    if what not in _said:
        _said.add(what)
        warn(
            f"the file system of {folder} cannot flush {what} to the disk ({error.strerror or error}): a killed "
            "process loses nothing, but what was written last may not survive a power cut"
        )

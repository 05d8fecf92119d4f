"""Replacing of files, and flushing to disk; where a file system cannot flush, one warning says what may be lost."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accmt.notices import warn
from accmt.rules.reserved_names import TEMPORARY

# Errors by which a file system or sandbox says that it cannot flush. All others, such as EIO and ENOSPC, are faults.
# A folder may be writable and yet not be opened for reading.
_CANNOT = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY, errno.EPERM})
_CANNOT_FOLDERS = _CANNOT | {errno.EBADF, errno.EISDIR, errno.EACCES}

_said: set[str] = set()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name; at the end of the block its file replaces `path`; on an error it is deleted."""
    temporary = path.with_name(f"{TEMPORARY}{os.urandom(6).hex()}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def replace_file(path: Path, text: str) -> None:
    """Write a file that replaces a former one: a reader, also after a crash, finds one of them, complete.

    It survives a power cut once `flush_directory` is called for its folder.

    Raises:
        OSError: It could not be written; the former one stays.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        flush(file.fileno(), path)


def flush_file(path: Path) -> None:
    """Flush a file, so that its content survives a power cut."""
    with path.open("rb+" if sys.platform == "win32" else "rb") as file:  # Windows flushes what it may write
        flush(file.fileno(), path)


def flush(descriptor: int, path: Path) -> None:
    """Flush an open file."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        _say("files", path.parent, error)


def flush_directory(folder: Path) -> None:
    """Flush a directory, so that renames in it survive a power cut; Windows cannot, and need not."""
    if sys.platform == "win32":
        return
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

"""Files of an outbox's journal: parts to which whole lines are appended, and a lock. Called by the outbox only."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from accmt.files.file_locks import lock_file_of_process
from accmt.files.foreign import BINARY, MIB, open_regular
from accmt.tracking.tracker import Resumption

CHUNK = 1 << 14
"""Bytes that are read at once."""

LONGEST_LINE = 16 * MIB


@dataclass(slots=True)
class JournalPart:
    """Part of the journal. A killed process may have left an incomplete line before `end`."""

    number: int
    path: Path
    recipients: dict[str, Resumption | None]
    start: int
    end: int


def complete_lines(path: Path, position: int, end: int) -> Iterator[tuple[bytes, int]]:
    """Yield the complete lines from an offset on, each with the offset after it.

    Raises:
        ValueError: A line is longer than that of a journal can be.
    """
    file = open_regular(path)
    try:
        rest = b""
        os.lseek(file, position, os.SEEK_SET)
        while position < end and (chunk := os.read(file, min(max(CHUNK, len(rest)), end - position))):
            *lines, rest = (rest + chunk).split(b"\n")
            position += len(chunk)
            if len(rest) > LONGEST_LINE:
                raise ValueError(f"a line in it is longer than {LONGEST_LINE:,} bytes")
            place = position - len(rest) - sum(len(line) + 1 for line in lines)
            for line in lines:
                place += len(line) + 1
                yield line, place
    finally:
        os.close(file)


def created_part(path: Path, content: bytes) -> int:
    """Create a file that only its owner may read, and return it open for appending.

    Raises:
        OSError: It could not be written; it was removed.
    """
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | BINARY, 0o600)
    try:
        append_whole(file, content)
    except OSError:
        os.close(file)
        path.unlink()
        raise
    return file


def append_whole(file: int, content: bytes) -> None:
    """Append content to a file by one write.

    Raises:
        OSError: It could not be written, or only in part.
    """
    if os.write(file, content) != len(content):
        raise OSError(errno.ENOSPC, "No space left on device")


def lock_file(file: int) -> bool:
    """Lock a file for this process; False if another process has. Without support for locks, always True."""
    try:
        return lock_file_of_process(file)
    except OSError:
        return True

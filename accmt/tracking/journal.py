"""The local history of a training: JSON lines that are on the disk before any tracker gets them."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accmt.files.durable import flush, flush_directory, only_warned, replace_file
from accmt.files.foreign import MIB, read_bytes
from accmt.rules import reserved_names as names

HISTORY = names.HISTORY
REPLICATES = names.REPLICATES
DECISIONS = names.DECISIONS
_LARGEST = 1024 * MIB


class Journal:
    """Append-only file of JSON lines; each line is on the disk when `append` returns.

    A line that cannot be written waits for the next one, or for `flush`; two failures in a row are an error. Only the
    main process writes; with `writes=False`, other processes only count lines.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path = path
        self.writes = writes
        self._waiting = b""
        self.lines = 0

    def append(self, entry: Mapping[str, Any]) -> str | None:
        """Add a line.

        Returns:
            A warning if the line waits; None if it is written.

        Raises:
            ValueError: A number is NaN or infinite.
            OSError: Neither it nor the one before could be written; the file is unchanged.
        """
        line = (json.dumps(entry, allow_nan=False) + "\n").encode()
        self.lines += 1
        waited, self._waiting = self._waiting, self._waiting + line
        try:
            self.flush()
        except OSError as error:
            if waited:
                raise
            return f"{self.path}: line {self.lines} waits to be written: {error.strerror}"
        return None

    def flush(self) -> None:
        """Write the waiting lines.

        Raises:
            OSError: They could not be written; the file is unchanged.
        """
        if self.writes and self._waiting:
            self._write(self._waiting)
        self._waiting = b""

    def cut(self, lines: int) -> None:
        """Truncate to the first `lines` lines, if there are so many, as later ones are written again."""
        self.lines, self._waiting = lines, b""
        if self.writes and (self.path.exists() or lines):
            self.replace(read_lines(self.path)[:lines] if self.path.exists() else [])

    def replace(self, lines: list[str]) -> None:
        """Replace all lines."""
        self.lines, self._waiting = len(lines), b""
        if self.writes:
            replace_file(self.path, "".join(line + "\n" for line in lines))
            flush_directory(self.path.parent)

    def _write(self, lines: bytes) -> None:
        is_new = not self.path.exists()
        with self.path.open("ab+", buffering=0) as file:
            end = _end_of_lines(file)
            file.truncate(end)
            try:
                if file.write(lines) != len(lines):
                    raise OSError(errno.ENOSPC, "it could not be written: the disk may be full")
                flush(file.fileno(), self.path)
            except OSError as error:
                file.truncate(end)
                raise OSError(error.errno, error.strerror or str(error), str(self.path)) from None
        if is_new:
            with only_warned(f"{self.path} is written, but may not survive a power cut"):
                flush_directory(self.path.parent)


def read_lines(path: Path) -> list[str]:
    """Read the complete lines of a journal; a last line that a crash cut off is left out."""
    return read_bytes(path, _LARGEST).decode("utf-8", errors="replace").split("\n")[:-1]


def read(path: Path) -> list[dict[str, Any]]:
    """Read the entries of a journal; none if there is no file.

    Raises:
        ValueError: A complete line is not JSON; the message says which.
    """
    return [_entry(path, number, line) for number, line in enumerate(read_lines(path), 1)] if path.is_file() else []


def _entry(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        entry: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number} is damaged: {error}") from None
    return entry


def _end_of_lines(file: Any) -> int:
    """Find the end of the last complete line; a partial line of a crash after it is overwritten."""
    size: int = file.seek(0, os.SEEK_END)
    if size == 0:
        return 0
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return size
    file.seek(0)
    return int(file.read().rfind(b"\n")) + 1

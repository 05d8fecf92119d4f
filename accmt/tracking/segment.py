"""A file of an outbox: its recipient, the logged entries, and how far they were sent; a line of JSON each.

    {"outbox": 1, "tracker": "mlflow", "training": "0123abcd", "location": ..., "run": ..., "resumption": ...}
    {"time": 1764000000000, "step": 12, "values": {"train_loss": 0.5}}
    {"time": 1764000000900, "file": "/home/me/notes.txt"}
    {"sent": 187}                                             everything before this byte was sent
    {"run": "4567cdef"}                                       the run began after the file
    {"time": 1764000001800, "status": "FINISHED"}

Lines are only appended, each by one write, so that a process may be killed at any moment.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accmt.files.durable import LOCKED
from accmt.files.foreign import MIB, open_regular
from accmt.rules.printable import masked, plain
from accmt.tracking.entries import Entry, from_data
from accmt.tracking.tracker import Resumption

SCHEMA = 1
_CHUNK = 1 << 14
_LONGEST_LINE = 16 * MIB
_KINDS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("tracker", "training", "location", "experiment"), (str,)),
    "parameters": (dict,),
    "arguments": (dict, type(None)),
    "began": (int,),
    "run": (str, dict, type(None)),
}
_NO_LINE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


class Damaged(ValueError):
    """A file does not begin as one of an outbox; the message names it and the reason."""


class Unbegun(Exception):
    """The file has no complete line, as a process was killed while it created the file."""


class InUse(Exception):
    """Another process writes to the file."""


@dataclass(frozen=True, slots=True)
class Recipient:
    """Recipient of an outbox: everything needed to begin the run later.

    Attributes:
        tracker: The name of the tracker.
        training: Unique id of the training.
        location: An absolute folder, or an address; on the disk without user and password.
        experiment: The name of the experiment.
        parameters: Parameters of the run with dotted names, as JSON.
        arguments: Arguments of the run, as JSON; None if they cannot be serialized.
        began: When the training began, in milliseconds since 1970.
    """

    tracker: str
    training: str
    location: str
    experiment: str
    parameters: Mapping[str, Any]
    arguments: Mapping[str, Any] | None
    began: int

    @property
    def identity(self) -> tuple[str, str, str]:
        """Key that is equal in all files of the same run."""
        return self.tracker, self.training, masked(self.location)


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of a file.

    Attributes:
        recipient: The recipient of the entries.
        resumption: The last one before the entries in the file; None if the training was not resumed.
        run: What the tracker needs to resume the run; None if it was not begun.
        ended: Whether the end of the run is in an earlier file.
    """

    recipient: Recipient
    resumption: Resumption | None = None
    run: Any = None
    ended: bool = False

    def to_line(self) -> bytes:
        resumption = None if self.resumption is None else asdict(self.resumption)
        own = {"run": self.run, "ended": self.ended, "resumption": resumption}
        return masked(json.dumps({"outbox": SCHEMA, **asdict(self.recipient), **own})).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Header:
        """Parse a header.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: The line is malformed.
        """
        data = json.loads(line)
        if data.pop("outbox", None) != SCHEMA:
            raise ValueError(f"it does not begin as an outbox of format {SCHEMA}")
        for name, kinds in _KINDS.items():
            if type(data[name]) not in kinds:
                raise ValueError(f"its {name} is {data[name]!r:.100}")
        own = {name: data.pop(name) for name in ("run", "ended", "resumption")}
        resumption = None if own["resumption"] is None else Resumption(**own["resumption"])
        return cls(Recipient(**data), resumption, own["run"], own["ended"])


class Segment:
    """Open file of an outbox, locked against other processes.

    Attributes:
        header: Its first line.
        run: The latest state of the run.
        ended: Whether the end of the run is in this file or an earlier one.
        start: Byte offset of the first entry.
        sent: Byte offset before which everything was sent.
        end: Byte offset after the last complete line.
        modified: Time of the last write before it was opened, in milliseconds since 1970.
    """

    def __init__(self, path: Path, file: int, header: Header, start: int) -> None:
        self.modified = os.fstat(file).st_mtime_ns // 1_000_000
        self.path = path
        self.header = header
        self.run, self.ended = header.run, header.ended
        self.start = self.sent = self.end = start
        self._file = file

    @classmethod
    def create(cls, path: Path, header: Header) -> Segment:
        """Create a file; only its owner may read it.

        Raises:
            FileExistsError: The file exists.
            OSError: It could not be written; it was removed.
        """
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
        _lock(file)
        segment = cls(path, file, header, 0)
        try:
            segment.start = segment.sent = segment.add(header.to_line())
        except OSError:
            segment.remove()
            raise
        return segment

    @classmethod
    def open(cls, path: Path) -> Segment:
        """Open an existing file, and truncate an incomplete last line.

        Raises:
            Unbegun: Not even its first line is complete; it is deleted.
            Damaged: It is not a file of an outbox.
            InUse: Another process uses it.
            OSError: It cannot be opened, or is a link or has hard links.
        """
        file = open_regular(path, os.O_RDWR | os.O_APPEND)
        try:
            if not _lock(file):
                raise InUse(f"{path} is in use")
            lines = _lines(file, 0, os.fstat(file).st_size)
            try:
                line, start = next(lines, (b"", 0))
                if start == 0:
                    path.unlink()
                    raise Unbegun
                segment = cls(path, file, Header.from_line(line), start)
                segment._look_through(lines)
            except _NO_LINE as error:
                raise Damaged(f"{path} is damaged: {plain(error)}") from None
            if segment.end < os.fstat(file).st_size:
                os.ftruncate(file, segment.end)
        except BaseException:
            os.close(file)
            raise
        return segment

    def add(self, line: bytes) -> int:
        """Append a line, and return the offset after it.

        Raises:
            OSError: It could not be written; the file is unchanged.
        """
        try:
            written = os.write(self._file, line)
            if written != len(line):
                raise OSError(f"only {written} of {len(line)} bytes could be written")
        except OSError:
            os.ftruncate(self._file, self.end)
            raise
        self.end += len(line)
        return self.end

    def read(self, position: int) -> tuple[list[tuple[Entry | None, int]], int]:
        """Read the next entries from an offset on, each with the offset after it, and the offset to continue at.

        A damaged line is returned as None.
        """
        entries: list[tuple[Entry | None, int]] = []
        place = position
        for line, place in _lines(self._file, position, self.end):
            try:
                data = json.loads(line)
                entry = from_data(data, self.header.resumption)
                if entry is not None:
                    entries.append((entry, place))
                elif not ("sent" in data or "run" in data):
                    raise ValueError("it says nothing")
            except _NO_LINE:
                entries.append((None, place))
            if place - position >= _CHUNK:
                break
        return entries, place

    def mark(self, position: int) -> None:
        """Record that everything before an offset was sent.

        Raises:
            OSError: The record could not be written.
        """
        self.sent = position
        self.add(json.dumps({"sent": position}).encode() + b"\n")

    def begun(self, run: Any) -> None:
        """Record what is needed to resume the run.

        Raises:
            OSError: The record could not be written.
        """
        self.run = run
        self.add(json.dumps({"run": run}).encode() + b"\n")

    def flush(self) -> None:
        """Flush to the disk, to survive a power cut."""
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file, so that others may use it. Closing it again does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def remove(self) -> None:
        """Delete and close the file."""
        self.path.unlink(missing_ok=True)
        self.close()

    def _look_through(self, lines: Iterator[tuple[bytes, int]]) -> None:
        """Scan for how far it was sent, the state of the run, and its end."""
        for line, end in lines:
            self.end = end
            if line.startswith(b'{"time"') and b'"status"' not in line:
                continue
            try:
                data = json.loads(line)
                if "sent" in data:
                    self.sent = max(self.start, min(int(data["sent"]), end))
                elif "run" in data:
                    self.run = data["run"]
                elif "status" in data:
                    self.ended = True
            except _NO_LINE:
                continue  # `read` counts it as damaged


def _lines(file: int, position: int, end: int) -> Iterator[tuple[bytes, int]]:
    """Yield the complete lines from an offset on, each with the offset after it."""
    rest = b""
    while position < end:
        chunk = os.pread(file, min(_CHUNK, end - position), position)
        if not chunk:
            return
        position += len(chunk)
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _LONGEST_LINE:
            raise Damaged(f"a line in it is longer than {_LONGEST_LINE:,} bytes")
        place = position - len(rest) - sum(len(line) + 1 for line in lines)
        for line in lines:
            place += len(line) + 1
            yield line, place


def _lock(file: int) -> bool:
    """Lock a file for this process; False if another process has. Without support for locks, always True."""
    import fcntl

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in LOCKED
    return True

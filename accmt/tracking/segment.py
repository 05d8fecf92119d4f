"""A file of an outbox: whom it is for, what was logged, and how far that was sent; a line of JSON each.

    {"outbox": 1, "tracker": "mlflow", "training": "0123abcd", "location": ..., "run": ..., "resumption": ...}
    {"time": 1764000000000, "step": 12, "values": {"train_loss": 0.5}}
    {"time": 1764000000900, "file": "/home/me/notes.txt"}
    {"sent": 187}                                             everything before this byte
    {"run": "4567cdef"}                                       begun later than the file
    {"time": 1764000001800, "status": "FINISHED"}

Lines are only added, each by one write, so that a process may be killed at any moment.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accmt.config.foreign import MIB, open_regular
from accmt.durable import LOCKED
from accmt.rules.texts import masked, plain
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
    """A file does not begin as one of an outbox; the message names it and says why."""


class Unbegun(Exception):
    """A process was killed when it was about to begin the file: there is nothing in it."""


class InUse(Exception):
    """Another process writes to the file."""


@dataclass(frozen=True, slots=True)
class Recipient:
    """Whom an outbox is for: all that is needed to begin the run later.

    Attributes:
        tracker: Its name.
        training: Tells the training from all others.
        location: A folder, absolute, or an address; on the disk without its user and password.
        experiment: The name under which the training is found.
        parameters: With dotted names, as JSON.
        arguments: Those of the run, as JSON; None if they cannot be written down.
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
        """What is the same in all files for the same run."""
        return self.tracker, self.training, masked(self.location)


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of a file.

    Attributes:
        recipient: Whom it is for.
        resumption: The last one before what is in the file; None if the training was not continued.
        run: What the tracker needs to continue the run; None if it was not begun.
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
        """
        Raises:
            ValueError, KeyError, TypeError, AttributeError: It is no such line.
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
    """A file of an outbox that is open, and that no other process may use.

    Attributes:
        header: Its first line.
        run: The last that is known of the run.
        ended: Whether the end of the run is in this file or an earlier one.
        start: Where what was logged begins, in bytes.
        sent: Everything before this is sent.
        end: Behind the last complete line.
        modified: When it was written to before it was opened, in milliseconds since 1970.
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
        """Begin a file; only its owner may read it.

        Raises:
            FileExistsError: There is one.
            OSError: It could not be written; it is not there.
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
        """Open a file that is there, and cut off a last line that is not complete.

        Raises:
            Unbegun: Not even its first line is complete; it is deleted.
            Damaged: It is no file of an outbox.
            InUse: Another process has it.
            OSError: It cannot be opened, or is not a file of this folder alone.
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
        """Add a line, and give the place behind it.

        Raises:
            OSError: It could not be written; the file is as before.
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
        """The next entries from a place on, each with the place behind it, and where to go on.

        A damaged line is None.
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
        """Write down that everything before a place was sent.

        Raises:
            OSError: That could not be written.
        """
        self.sent = position
        self.add(json.dumps({"sent": position}).encode() + b"\n")

    def begun(self, run: Any) -> None:
        """Write down what is needed to continue the run.

        Raises:
            OSError: That could not be written.
        """
        self.run = run
        self.add(json.dumps({"run": run}).encode() + b"\n")

    def flush(self) -> None:
        """Put it on the disk, against a power cut."""
        os.fsync(self._file)

    def close(self) -> None:
        """Let others use the file. Closing it again does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def remove(self) -> None:
        """Delete the file, and close it."""
        self.path.unlink(missing_ok=True)
        self.close()

    def _look_through(self, lines: Iterator[tuple[bytes, int]]) -> None:
        """Find out how far it was sent, what is known of the run, and where it ends."""
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
                continue  # it is counted when it is its turn


def _lines(file: int, position: int, end: int) -> Iterator[tuple[bytes, int]]:
    """The complete lines from a place on, each with the place behind it."""
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
    """Lock a file for this process; False if another has it. Where files cannot be locked nobody has them."""
    import fcntl

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in LOCKED
    return True

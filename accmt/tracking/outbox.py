"""The outbox of a run: entries that wait for a tracker, in files below a `model_path`, kept until they are sent.

Logged entries are appended to the newest file; sent ones are marked, and a file in which nothing waits is deleted. Only
the main process of a training has an outbox, under the lock of its folder.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from accmt.files.foreign import NotAFile
from accmt.rules import reserved_names as names
from accmt.tracking.entries import Count, Ended, Entry, to_line
from accmt.tracking.segment import Damaged, Header, InUse, Recipient, Segment, Unbegun
from accmt.tracking.tracker import Logged, Resumption

FOLDER = names.OUTBOX
_LARGE = 1 << 20
_NAME = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{4,})\.jsonl", re.DOTALL)

Place = tuple[Segment, int]
"""Behind an entry: everything before it in this file comes before it."""


class Outbox:
    """Entries that wait for a tracker. Not thread-safe: callers with several threads need a lock.

    In a resumed training, entries that were logged after the checkpoint no longer wait, as they are logged again. This
    applies from the first entry that is added; until then the files stay as they are.

    Args:
        model_path: The folder of the training.
        recipient: Recipient of the entries. Entries that already wait for the same run come first.
        resumption: Where the training resumes now; None if it does not.

    Attributes:
        recipient, resumption: As given.
        run: What the tracker needs to resume the run; None if it has not begun.
        ended: Whether the end of the run was logged.
        unreadable: Number of damaged lines found.
        problems: Why existing files could not be used, one line each.
    """

    def __init__(self, model_path: Path, recipient: Recipient, resumption: Resumption | None = None) -> None:
        self.recipient = recipient
        self.run: Any = None
        self.ended = False
        self.unreadable = 0
        self.problems: list[str] = []
        self._folder = model_path / FOLDER
        self._stem = f"{_plain(recipient.tracker)}-{_plain(recipient.training)[:12]}"
        self.resumption = resumption
        self._segments: list[Segment] = []
        self._reading, self._position = 0, 0
        self.reopen()

    @property
    def is_taken_up(self) -> bool:
        """True if there were no files before, or an entry was added since."""
        return not self._segments or self._continues_last

    @property
    def modified(self) -> int | None:
        """Time of the last write before it was opened, in milliseconds since 1970; None if it is new."""
        return max((segment.modified for segment in self._segments), default=None)

    @property
    def unread(self) -> int:
        """Number of unread bytes, marks included."""
        rest = self._segments[self._reading + 1 :]
        here = self._segments[self._reading].end - self._position if self._reading < len(self._segments) else 0
        return here + sum(segment.end - segment.start for segment in rest)

    def add(self, entry: Entry) -> Place:
        """Add an entry at the end.

        Raises:
            OSError: It could not be written; nothing was changed.
        """
        line = to_line(entry)
        last = self._segments[-1] if self._continues_last else None
        if last is None or last.end - last.start > _LARGE:
            last = self._new_segment()
        place = last.add(line)
        self.ended = self.ended or isinstance(entry, Ended)
        return last, place

    def read(self) -> list[tuple[Entry, Place]]:
        """Read some of the next waiting entries; none if all were read. Damaged lines are counted."""
        while self._reading < len(self._segments):
            segment, index = self._segments[self._reading], self._reading
            found, self._position = segment.read(self._position)
            is_last, at_end = segment is self._segments[-1], self._position == segment.end
            if at_end and not is_last:
                self._reading += 1
                self._position = self._segments[self._reading].sent
            self.unreadable += sum(entry is None for entry, _ in found)
            entries = [(entry, (segment, end)) for entry, end in found if entry is not None]
            if waiting := [(entry, place) for entry, place in entries if not self._is_void(entry, index)]:
                return waiting
            if at_end and is_last:
                return []
        return []

    def settle(self, place: Place) -> None:
        """Mark everything up to a place, all of which was read, as sent or given up.

        Raises:
            OSError: The mark could not be written; a later process may send some entries again.
        """
        segment, position = place
        while self._segments and self._segments[0] is not segment:
            self._segments.pop(0).remove()
            self._reading -= 1
        segment.mark(position)

    def begun(self, run: Any) -> None:
        """Store what is needed to resume the run."""
        self.run = run
        if self._segments:
            with suppress(OSError):
                self._segments[-1].begun(run)

    def left(self) -> Count:
        """Count the waiting entries."""
        count = Count()
        for index, segment in enumerate(self._segments):
            position = segment.sent
            while position < segment.end:
                entries, position = segment.read(position)
                for entry, _ in entries:
                    if entry is not None and not self._is_void(entry, index):
                        count.add(entry)
        return count

    def reopen(self) -> None:
        """Open the files on the disk for this run."""
        for segment in _segments(self._folder, self.problems, self._stem):
            if segment.header.recipient.identity != self.recipient.identity:
                segment.close()
                continue
            if not self._segments:
                self.recipient = replace(self.recipient, began=segment.header.recipient.began)
            self._segments.append(segment)
            self.run = segment.run if segment.run is not None else self.run
            self.ended = segment.ended
        self.ended = self.ended and self._continues_last
        self._position = self._segments[0].sent if self._segments else 0

    def release(self) -> None:
        """Close the files, so that others may use them. Until `reopen` or `add` there is nothing to read."""
        for segment in self._segments:
            with suppress(OSError):
                segment.flush()
        self._close()

    def remove(self) -> None:
        """Delete the files: nothing waits any more."""
        for segment in self._segments:
            with suppress(OSError):
                segment.path.unlink()
        self._close()
        with suppress(OSError):
            self._folder.rmdir()

    def _close(self) -> None:
        for segment in self._segments:
            segment.close()
        self._segments, self._reading = [], 0

    @property
    def _continues_last(self) -> bool:
        return bool(self._segments) and self._segments[-1].header.resumption == self.resumption

    def _new_segment(self) -> Segment:
        if self._folder.is_symlink():
            raise NotAFile(errno.ELOOP, "it is a link, and must be a folder", str(self._folder))
        self._folder.mkdir(parents=True, exist_ok=True)
        header = Header(self.recipient, self.resumption, self.run, self.ended)
        numbers = [_number(path) for path in _files(self._folder, self._stem)]
        number = max(numbers, default=0) + 1
        segment = Segment.create(self._folder / f"{self._stem}-{number:04d}.jsonl", header)
        if not self._segments:
            self._position = segment.start
        self._segments.append(segment)
        return segment

    def _is_void(self, entry: Entry, index: int) -> bool:
        """Return whether an entry of this file is logged again by a training that was resumed since."""
        own = self._segments[index].header.resumption
        later = {segment.header.resumption for segment in self._segments[index + 1 :]} - {own, None}
        if isinstance(entry, Logged):
            return any(resumption.voids(entry.step, entry.time) for resumption in later if resumption is not None)
        return isinstance(entry, Ended) and bool(later)


def outboxes_in(model_path: Path) -> tuple[list[Outbox], list[str]]:
    """Open the outboxes in a folder; list why files could not be used, one line each."""
    headers: dict[tuple[str, str, str], list[Header]] = {}
    problems: list[str] = []
    for segment in _segments(model_path / FOLDER, problems):
        headers.setdefault(segment.header.recipient.identity, []).append(segment.header)
        segment.close()
    return [Outbox(model_path, found[-1].recipient, found[-1].resumption) for found in headers.values()], problems


def waiting_in(model_path: Path) -> tuple[dict[tuple[str, str, str], Count], list[str]]:
    """Count the waiting entries in a folder, by recipient; list why files could not be used."""
    outboxes, problems = outboxes_in(model_path)
    waiting = {outbox.recipient.identity: outbox.left() for outbox in outboxes}
    for outbox in outboxes:
        outbox.release()
    return waiting, problems


def _segments(folder: Path, problems: list[str], stem: str | None = None) -> Iterator[Segment]:
    """Open the files of a folder one by one; add those that cannot be used to the problems."""
    if folder.is_symlink():
        problems.append(f"{folder} is a link, and must be a folder: nothing behind it is read or written")
        return
    for path in _files(folder, stem):
        with suppress(Unbegun):
            try:
                yield Segment.open(path)
            except (Damaged, InUse, OSError) as error:
                problems.append(str(error))


def _files(folder: Path, stem: str | None = None) -> Iterator[Path]:
    """Yield the files of outboxes in a folder, in order of creation."""
    found: list[Path] = []
    with suppress(OSError):
        found = [path for path in folder.iterdir() if path.is_file() and not path.is_symlink()]
    matches = {path: match for path in found if (match := _NAME.fullmatch(path.name))}
    wanted = [path for path, match in matches.items() if stem is None or match["stem"] == stem]
    yield from sorted(wanted, key=lambda path: (matches[path]["stem"], int(matches[path]["number"])))


def _number(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match["number"]) if match else 0


def _plain(name: str) -> str:
    """Encode any name as a part of a file name."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_") else f"%{ord(c):X}" for c in name)[:60]

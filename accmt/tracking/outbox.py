"""The outbox of a run: what waits for a tracker, in files below a `model_path`, so that nothing ends it but sending it.

What is logged is added to the newest file; what was sent is marked, and a file in which nothing waits any more is
deleted. Only the main process of a training has one, under the lock of its folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from accmt.tracking.entries import Count, Ended, Entry, Logged, to_line
from accmt.tracking.segment import Damaged, Header, InUse, Recipient, Segment
from accmt.tracking.tracker import Resumption

FOLDER = "outbox"
_LARGE = 1 << 20
_NAME = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{4,})\.jsonl", re.DOTALL)

Place = tuple[Segment, int]
"""Behind an entry: everything before it in this file comes before it."""


class Outbox:
    """What waits for a tracker. It knows nothing of threads: whoever uses it from several has a lock.

    In a training that was continued, what was logged after the checkpoint waits no more, as it is logged again. That
    is so from the first entry that is added; until then the files stay as they are.

    Args:
        model_path: The folder of the training.
        recipient: Whom it is for. What there is for the same run already comes first.
        resumption: Where the training is continued now; None if it is not.

    Attributes:
        run: What the tracker needs to continue the run; None if it has not begun.
        ended: Whether the end of the run was logged.
        problems: What could not be used of what was there, one line each.
    """

    def __init__(self, model_path: Path, recipient: Recipient, resumption: Resumption | None = None) -> None:
        self.recipient = recipient
        self.run: Any = None
        self.ended = False
        self.problems: list[str] = []
        self._folder = model_path / FOLDER
        self._stem = f"{_plain(recipient.tracker)}-{_plain(recipient.training)[:12]}"
        self._resumption = resumption
        self._segments: list[Segment] = []
        self._current: Segment | None = None
        self._reading, self._position = 0, 0
        self.reopen()

    @classmethod
    def left_in(cls, model_path: Path) -> tuple[list[Outbox], list[str]]:
        """The outboxes that lie in a folder, and what could not be read, one line each."""
        headers: dict[tuple[str, str, str], Header] = {}
        problems = []
        for path in _files(model_path / FOLDER):
            try:
                segment = Segment.open(path)
            except (Damaged, InUse, OSError) as error:
                problems.append(str(error))
                continue
            headers[segment.header.recipient.identity] = segment.header
            segment.close()
        return [cls(model_path, header.recipient, header.resumption) for header in headers.values()], problems

    @property
    def is_taken_up(self) -> bool:
        """Whether there was nothing before, or something was added since."""
        return self._current is not None or not self._segments

    @property
    def unread(self) -> int:
        """How many bytes were not read yet, marks included."""
        rest = self._segments[self._reading + 1 :]
        here = self._segments[self._reading].end - self._position if self._reading < len(self._segments) else 0
        return here + sum(segment.end - segment.start for segment in rest)

    def add(self, entry: Entry) -> Place:
        """Add an entry at the end.

        Raises:
            OSError: It could not be written; nothing has changed.
        """
        line = to_line(entry)
        if self._current is None or self._current.end > _LARGE:
            self._current = self._new_segment()
        place = self._current.add(line)
        self.ended = self.ended or isinstance(entry, Ended)
        return self._current, place

    def read(self) -> list[tuple[Entry, Place]]:
        """The next entries that wait, some of them; none if all were read. What is damaged is in `unreadable`."""
        while self._reading < len(self._segments):
            segment = self._segments[self._reading]
            found, self._position = segment.read(self._position)
            entries = [(entry, (segment, end)) for entry, end in found if entry is not None]
            waiting = [(entry, place) for entry, place in entries if not self._is_void(entry, self._reading)]
            if self._position == segment.end and segment is not self._segments[-1]:
                self._reading += 1
                self._position = self._segments[self._reading].sent
            elif not found:
                return []
            if waiting:
                return waiting
        return []

    def settle(self, place: Place) -> None:
        """Everything up to this place was sent, or given up.

        Raises:
            OSError: That could not be written down: some of it may be sent again by a later process.
        """
        segment, position = place
        while self._segments and self._segments[0] is not segment:
            self._segments.pop(0).remove()
            self._reading -= 1
        segment.mark(position)

    def begun(self, run: Any) -> None:
        """Keep what is needed to continue the run."""
        self.run = run
        if self._segments:
            with suppress(OSError):
                self._segments[-1].add_run(run)

    def left(self) -> Count:
        """How much waits."""
        count = Count()
        for index, segment in enumerate(self._segments):
            position = segment.sent
            while position < segment.end:
                entries, position = segment.read(position)
                for entry, _ in entries:
                    if entry is None:
                        count.unreadable += 1
                    elif not self._is_void(entry, index):
                        count.add(entry)
        return count

    def reopen(self) -> None:
        """Find what is on the disk for this run."""
        for path in _files(self._folder, self._stem):
            try:
                segment = Segment.open(path)
            except (Damaged, InUse, OSError) as error:
                self.problems.append(str(error))
                continue
            if segment.header.recipient.identity != self.recipient.identity:
                segment.close()
                continue
            self._segments.append(segment)
            self.run = segment.run if segment.run is not None else self.run
            self.ended = segment.ended
        if self._segments and self._segments[-1].header.resumption != self._resumption:
            self.ended = False
        self._position = self._segments[0].sent if self._segments else 0

    def release(self) -> None:
        """Let others use the files. Until `reopen`, or something is added, there is nothing to read."""
        for segment in self._segments:
            with suppress(OSError):
                segment.flush()
            segment.close()
        self._segments, self._current, self._reading = [], None, 0

    def remove(self) -> None:
        """Delete the files: nothing waits any more."""
        for segment in self._segments:
            with suppress(OSError):
                segment.remove()
        self.release()
        with suppress(OSError):
            self._folder.rmdir()

    def _new_segment(self) -> Segment:
        self._folder.mkdir(parents=True, exist_ok=True)
        header = Header(self.recipient, self._resumption, self.run, self.ended)
        numbers = [_number(path) for path in _files(self._folder, self._stem)]
        number = max(numbers, default=0) + 1
        segment = Segment.create(self._folder / f"{self._stem}-{number:04d}.jsonl", header)
        if not self._segments:
            self._position = segment.start
        self._segments.append(segment)
        return segment

    def _is_void(self, entry: Entry, index: int) -> bool:
        """Whether an entry of this file is logged again by the training that was continued since."""
        own = self._segments[index].header.resumption
        later = {segment.header.resumption for segment in self._segments[index + 1 :]} - {own, None}
        if isinstance(entry, Logged):
            return any(resumption.voids(entry.step, entry.time) for resumption in later if resumption is not None)
        return isinstance(entry, Ended) and bool(later)


def _files(folder: Path, stem: str | None = None) -> Iterator[Path]:
    """The files of outboxes in a folder, in the order in which they were begun."""
    found = [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    matches = {path: match for path in found if (match := _NAME.fullmatch(path.name))}
    wanted = [path for path, match in matches.items() if stem is None or match["stem"] == stem]
    yield from sorted(wanted, key=lambda path: (matches[path]["stem"], int(matches[path]["number"])))


def _number(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match["number"]) if match else 0


def _plain(name: str) -> str:
    """A part of a file name, whatever the name is."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_") else f"%{ord(c):X}" for c in name)[:60]

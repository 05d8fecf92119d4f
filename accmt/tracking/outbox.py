"""The outbox of a training: a journal of what was logged, and how far it was sent to each tracker.

    outbox/0001.jsonl          {"outbox": 2, "recipients": {"mlflow-0f3a...": null}}     a part of the journal
                               {"values": {"train_loss": 0.5}, "step": 12, "time": 1764000000000}
                               {"path": "/home/me/notes.txt", "is_folder": false, "time": 1764000000900}
                               {"status": "FINISHED", "time": 1764000001800}
    outbox/mlflow-0f3a....json {"recipient": {"tracker": "mlflow", ...}, "part": 1, "offset": 187, "run": "4567", ...}

Lines are only appended, each by one write; each process begins its own part, and the files of the recipients are
replaced atomically, so that a process may be killed at any moment. A part is deleted when it was sent to all its
recipients, and the folder when nothing waits. Only the main process of a training has an outbox, under the lock of its
folder.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from accmt.files.durable import replacing
from accmt.files.foreign import NotAFile, open_regular, read_bytes
from accmt.rules import reserved_names as names
from accmt.rules.printable import escaped
from accmt.tracking.journal_parts import (
    CHUNK,
    LONGEST_LINE,
    JournalPart,
    append_whole,
    complete_lines,
    created_part,
    lock_file,
)
from accmt.tracking.records import (
    SCHEMA,
    Entry,
    EntryCount,
    PartHeader,
    RunEnd,
    SentPosition,
    parsed_as,
    position_line,
    to_line,
)
from accmt.tracking.tracker import Logged, Resumption

FOLDER = names.OUTBOX
MOST_VALUES = 100_000
"""Values for a tracker that may wait in memory while the disk cannot be written."""

_LOCK = "lock"
_PART = re.compile(r"[0-9]{4,}\.jsonl")
_EARLIER = re.compile(r".+-[0-9]{4,}\.jsonl", re.DOTALL)
_LARGE = 1 << 20


class Outbox:
    """Journal of a training, and a reader for each tracker. Callers with several threads hold `lock`.

    In a resumed training nothing is read before the first entry is added: until then it may turn out that the training
    cannot be resumed, and the files stay as they are. Afterwards, entries that were logged after the checkpoint no
    longer wait, as they are logged again.

    Args:
        model_path: The folder of the training.

    Attributes:
        is_held: Whether nothing may be read before an entry is added.
        problems: Why existing files could not be used, one line each.
        trouble: Why an entry could not be written to the disk; None if all were written.
    """

    def __init__(self, model_path: Path) -> None:
        self.lock = threading.RLock()
        self.is_held = False
        self.problems: list[str] = []
        self.trouble: OSError | None = None
        self._folder = model_path / FOLDER
        self._readers: list[OutboxReader] = []
        self._parts: list[JournalPart] = []
        self._stored: dict[str, SentPosition | None] = {}
        self._locked = self._writer = -1
        if os.path.lexists(self._folder):
            try:
                self._open()
            except OSError as error:
                self.problems.append(f"{self._folder} {error.strerror}")

    def read_by(self, position: SentPosition, resumption: Resumption | None = None) -> OutboxReader:
        """Add a recipient of all entries from now on, and of those that wait for it already.

        Args:
            position: The recipient, and what is known of its run; how far it was sent is known on the disk.
            resumption: Where its training resumes now; None if it does not.
        """
        with self.lock:
            reader = OutboxReader(self, position, resumption)
            if stored := self._stored.get(reader.name):
                reader.take_up(stored)
                parts = self.parts_for(reader.name, 0)
                last = parts[-1].recipients[reader.name] if parts else None
                self.is_held |= not position.ended and last != resumption
            self._readers.append(reader)
            return reader

    def stored(self) -> list[tuple[SentPosition, Resumption | None]]:
        """List the recipients on the disk that have no reader, with their last resumption."""
        own = {reader.name for reader in self._readers}
        others = {name: position for name, position in self._stored.items() if position and name not in own}
        last = {name: part.recipients[name] for part in self._parts for name in others if name in part.recipients}
        return [(position, last.get(name)) for name, position in others.items()]

    def add(self, entry: Entry) -> None:
        """Add an entry for all readers. It is on the disk when this returns, or waits in memory: see `trouble`."""
        with self.lock:
            if self.is_held:
                self.is_held = False
                for reader in self._readers:
                    reader.position = replace(reader.position, ended=False)
            try:
                for reader in self._readers:
                    self.write(reader, reader.memory)
                    reader.forget_memory()
                self._append(to_line(entry), self._readers)
            except OSError as error:
                self.trouble = error
                for reader in self._readers:
                    reader.remember(entry)

    def write(self, reader: OutboxReader, entries: Sequence[Entry]) -> None:
        """Write entries that wait for one reader only.

        Raises:
            OSError: They could not be written; nothing was changed.
        """
        if entries:
            self._append(b"".join(map(to_line, entries)), [reader])

    def parts_for(self, name: str, first: int) -> list[JournalPart]:
        """Return the parts of the journal for a recipient, in order, from a number on."""
        return [part for part in self._parts if part.number >= first and name in part.recipients]

    def save(self, reader: OutboxReader) -> None:
        """Record how much of the journal a recipient was sent, if any of it is on the disk, and delete what was sent.

        An error is ignored: a later process may send some entries again, and some trackers detect the duplicates.
        """
        former = self._stored.get(reader.name)
        if former is not None and self._locked >= 0:
            with suppress(OSError):
                self._replace(reader)
                if former.part != reader.position.part:
                    self._delete_sent()

    def release(self) -> None:
        """Close the files, so that other processes may use them; what waits in memory is written, or is lost."""
        with self.lock:
            for reader in self._readers:
                reader.finish()
            if self._writer >= 0:
                with suppress(OSError):
                    os.fsync(self._writer)
                os.close(self._writer)
                self._writer = -1
            if self._locked >= 0:
                if not self.is_held:
                    with suppress(OSError):
                        self._clean_up()
                self._unlock()

    def _clean_up(self) -> None:
        """Delete the parts that were sent, and the folder if nothing waits; a process may be killed in between."""
        for reader in self._readers:
            if not reader.left:
                reader.position = replace(reader.position, part=self._next_number(), offset=0)
                self.save(reader)
        self._delete_sent()
        if not self._parts and None not in self._stored.values():
            for name in self._stored:
                self._file_of(name).unlink()
            if sys.platform == "win32":  # which deletes no open file
                self._unlock()
            (self._folder / _LOCK).unlink()
            self._folder.rmdir()

    def _unlock(self) -> None:
        if self._locked >= 0:
            os.close(self._locked)
        self._locked = -1

    def _delete_sent(self) -> None:
        own = self._parts[-1:] if self._writer >= 0 else []
        for part in [part for part in self._parts if part not in own and not self._is_needed(part)]:
            part.path.unlink(missing_ok=True)
            self._parts.remove(part)

    def _is_needed(self, part: JournalPart) -> bool:
        positions = [self._stored.get(name) for name in part.recipients]
        return any(position is None or position.part <= part.number for position in positions)

    def _append(self, lines: bytes, readers: Sequence[OutboxReader]) -> None:
        """Append lines to the journal by one write, in a part for these readers.

        Raises:
            OSError: They could not be written; nothing was changed.
        """
        wanted = {reader.name: reader.resumption for reader in readers}
        if self._writer < 0 or self._parts[-1].end > _LARGE or self._parts[-1].recipients != wanted:
            self._begin_part(wanted)
        part = self._parts[-1]
        try:
            append_whole(self._writer, lines)
        except OSError:
            os.ftruncate(self._writer, part.end)
            raise
        part.end += len(lines)

    def _begin_part(self, recipients: dict[str, Resumption | None]) -> None:
        """Begin a part of the journal, after the files of all readers, so that whatever finds it knows them."""
        if self._locked < 0:
            self._open()
            for reader in self._readers:
                if stored := self._stored.get(reader.name):
                    reader.take_up(stored)
        for reader in self._readers:
            if reader.name not in self._stored or self._writer < 0:
                self._replace(reader)
        number = self._next_number()
        path = self._folder / f"{number:04d}.jsonl"
        line = to_line(PartHeader(SCHEMA, recipients))
        writer = created_part(path, line)
        if self._writer >= 0:
            os.close(self._writer)
        self._writer = writer
        self._parts.append(JournalPart(number, path, recipients, len(line), len(line)))

    def _next_number(self) -> int:
        positions = [position.part for position in self._stored.values() if position is not None]
        number = max([1, *positions, *(part.number + 1 for part in self._parts)])
        while os.path.lexists(self._folder / f"{number:04d}.jsonl"):  # a damaged one
            number += 1
        return number

    def _open(self) -> None:
        """Lock the outbox against other processes, and find what is in it.

        Raises:
            OSError: It cannot be used; the text says why.
        """
        if self._folder.is_symlink():
            text = "is a link, and must be a folder: nothing behind it is read or written"
            raise NotAFile(errno.ELOOP, text, str(self._folder))
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            file = open_regular(self._folder / _LOCK, os.O_RDWR | os.O_CREAT)
        except NotAFile as error:
            text = str(error.strerror).replace("it ", f"cannot be used: its {_LOCK} ", 1)
            raise NotAFile(error.errno, text, str(self._folder)) from None
        if not lock_file(file):
            os.close(file)
            raise OSError(errno.EAGAIN, "is in use by another process", str(self._folder))
        self._locked = file
        self._find_files()

    def _find_files(self) -> None:
        earlier = []
        for path in sorted(self._folder.iterdir(), key=lambda path: (len(path.name), path.name)):
            if path.name.startswith(names.TEMPORARY):
                path.unlink()
            elif _EARLIER.fullmatch(path.name):
                earlier.append(path.name)
            elif path.suffix in (".json", ".jsonl") and path.is_file():
                self._take_up(path)
        for part in self._parts:
            for name in part.recipients.keys() - self._stored.keys():
                self.problems.append(f"{part.path} cannot be sent: {self._file_of(name).name} is gone")
        if earlier:
            self.problems.append(
                f"{self._folder} holds what an earlier version of accmt could not send ({', '.join(earlier)}): this "
                "version leaves it as it is; call the same `accmt sync` with that version, or delete these files"
            )

    def _take_up(self, path: Path) -> None:
        try:
            if path.suffix == ".json":
                self._stored[path.stem] = None
                position = parsed_as(SentPosition, read_bytes(path, LONGEST_LINE))
                if position.recipient.name != path.stem:
                    raise ValueError("its recipient belongs into another file")
                self._stored[path.stem] = position
            elif _PART.fullmatch(path.name):
                size = path.lstat().st_size
                line, start = next(complete_lines(path, 0, size), (b"", 0))
                if not start:
                    return path.unlink()  # a process was killed when it began this part
                header = parsed_as(PartHeader, line)
                if header.outbox != SCHEMA:
                    raise ValueError(f"it has the format {header.outbox}, not {SCHEMA}")
                self._parts.append(JournalPart(int(path.stem), path, header.recipients, start, size))
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else escaped(error)
            self.problems.append(f"{path} is damaged: {why}")

    def _file_of(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _replace(self, reader: OutboxReader) -> None:
        """Replace the file of a recipient atomically."""
        path = self._file_of(reader.name)
        with replacing(path) as temporary:
            os.close(created_part(temporary, position_line(reader.position, reader.recipient_line)))
        self._stored[reader.name] = reader.position


class OutboxReader:
    """Reader of what waits for one tracker, in order; entries are read, and then settled as sent or lost.

    Attributes:
        name: Name of the recipient.
        position: How far it was sent.
        recipient_line: The recipient as JSON.
        resumption: Where its training resumed; None if it did not.
        memory: Entries that could not be written to the disk.
        kept: Entries that are not sent by this process, but may be by a later one.
        sent, lost: What was sent, and what can no longer be sent.
        left: What waits on the disk; known after `Outbox.release`.
    """

    def __init__(self, outbox: Outbox, position: SentPosition, resumption: Resumption | None) -> None:
        self.name = position.recipient.name
        self.position, self.resumption = position, resumption
        self.memory: deque[Entry] = deque()
        self.kept: list[Entry] = []
        self.sent, self.lost, self.left = EntryCount(), EntryCount(), EntryCount()
        self._outbox = outbox
        self._ahead: deque[tuple[Entry, tuple[int, int] | None]] = deque()
        self._part, self._offset, self._values = position.part, position.offset, 0
        self.recipient_line = to_line(position.recipient)

    def take_up(self, stored: SentPosition) -> None:
        """Continue where an earlier process was; of a run, what is known on the disk is newer."""
        recipient = replace(self.position.recipient, began=stored.recipient.began)
        run = self.position.run if stored.run is None else stored.run
        ended = self.position.ended or stored.ended
        self.position = SentPosition(recipient, stored.part, stored.offset, run, ended)
        self.recipient_line = to_line(recipient)
        self._part, self._offset = stored.part, stored.offset

    def remember(self, entry: Entry) -> None:
        """Keep an entry in memory. If there are too many values, the oldest are lost."""
        self.memory.append(entry)
        self._values += len(entry.values) if isinstance(entry, Logged) else 0
        while self._values > MOST_VALUES:
            oldest = self.memory.popleft()
            if isinstance(oldest, Logged):
                self.lost.add(oldest)
                self._values -= len(oldest.values)
            else:
                self.kept.append(oldest)

    def forget_memory(self) -> None:
        """Forget the entries in memory: they are elsewhere now."""
        self.memory.clear()
        self._values = 0

    def next(self, count: int) -> list[Entry]:
        """Read the next entries, at least `count` of them if so many wait, without settling them."""
        while len(self._ahead) < count and self._read_more():
            pass
        return [entry for entry, _ in self._ahead]

    def settle(self, count: int, into: EntryCount | None) -> list[Entry]:
        """Count the next entries as sent or lost, or not at all with None; return them."""
        with self._outbox.lock:
            position = self.position
            settled = [self._ahead.popleft() for _ in range(count)]
            for entry, place in settled:
                if into is not None:
                    into.add(entry)
                if place is not None:
                    position = replace(position, part=place[0], offset=place[1])
                position = replace(position, ended=position.ended or isinstance(entry, RunEnd))
            self._keep(position)
            return [entry for entry, _ in settled]

    def begun(self, run: Any) -> None:
        """Store what is needed to resume the run."""
        with self._outbox.lock:
            self._keep(replace(self.position, run=run))

    def waiting(self) -> EntryCount:
        """Count the entries that wait on the disk."""
        count = EntryCount()
        for part in self._outbox.parts_for(self.name, self.position.part):
            offset = self.position.offset if part.number == self.position.part else 0
            while offset < part.end:
                entries, _, offset = self._entries(part, offset)
                for entry, _ in entries:
                    count.add(entry)
        return count

    def finish(self) -> None:
        """Write what is only in memory, or count it as lost."""
        entries = [*(entry for entry, place in self._ahead if place is None), *self.memory, *self.kept]
        self._ahead.clear()
        self.kept.clear()
        self.forget_memory()
        try:
            self._outbox.write(self, entries)
        except OSError as error:
            self._outbox.trouble = error
            for entry in entries:
                self.lost.add(entry)
        try:
            self.left = EntryCount() if self._outbox.is_held else self.waiting()
        except OSError as error:
            self.left = EntryCount(unreadable=1)
            self._outbox.problems.append(f"{error.filename} cannot be read: {error.strerror}")

    @property
    def modified(self) -> int | None:
        """Time of the last entry on the disk, in milliseconds since 1970; None if there is none."""
        parts = self._outbox.parts_for(self.name, 0)
        return max((part.path.stat().st_mtime_ns // 1_000_000 for part in parts), default=None)

    def _keep(self, position: SentPosition) -> None:
        self.position = position
        self._outbox.save(self)

    def _read_more(self) -> bool:
        """Read some entries; return False if there are no more. The lock is never held for long."""
        with self._outbox.lock:
            if self._outbox.is_held:
                return False
            for part in self._outbox.parts_for(self.name, self._part):
                offset = self._offset if part.number == self._part else 0
                if offset < part.end:
                    entries, damaged, self._offset = self._entries(part, offset)
                    self._part = part.number
                    self._ahead.extend((entry, (part.number, end)) for entry, end in entries)
                    self.lost.unreadable += damaged
                    return True
            self._ahead.extend((entry, None) for entry in self.memory)
            is_more = bool(self.memory)
            self.forget_memory()
            return is_more

    def _entries(self, part: JournalPart, offset: int) -> tuple[list[tuple[Entry, int]], int, int]:
        """Read some waiting entries of a part, each with the offset after it.

        Returns:
            The entries, the number of damaged lines among them, and the offset to continue at.
        """
        own = part.recipients[self.name]
        later = {each.recipients[self.name] for each in self._outbox.parts_for(self.name, part.number + 1)}
        resumptions = [each for each in later if each is not None and each != own]
        found: list[tuple[Entry, int]] = []
        damaged, start = 0, max(offset, part.start)
        try:
            for line, end in complete_lines(part.path, start, part.end):
                try:
                    entry = parsed_as(Entry, line)
                    entry = replace(entry, resumption=own) if isinstance(entry, Logged) else entry
                    if not any(_is_logged_again(entry, resumption) for resumption in resumptions):
                        found.append((entry, end))
                except ValueError:
                    damaged += 1
                if end - start >= CHUNK:
                    return found, damaged, end
        except ValueError:
            damaged += 1
        return found, damaged, part.end


def _is_logged_again(entry: Entry, resumption: Resumption) -> bool:
    return isinstance(entry, RunEnd) or (isinstance(entry, Logged) and resumption.voids(entry.step, entry.time))

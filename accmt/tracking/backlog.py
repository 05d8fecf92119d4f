"""Queue of entries for a tracker, in order, between the loop and the thread that sends them.

Entries wait in the outbox on the disk. Memory holds those in hand, and, bounded, those that could not be written.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from accmt.tracking.entries import Count, Ended, Entry, File, merged
from accmt.tracking.outbox import Outbox, Place
from accmt.tracking.tracker import Logged

_BATCH = 1000
_FAR_BEHIND = 1 << 15


class Backlog:
    """Queue that never blocks the threads that fill it.

    The thread that empties it takes entries in hand, and settles each as sent or lost.

    Args:
        outbox: Holds the entries. Nobody else uses it.
        most: Values that may wait in memory while the disk cannot be written; beyond that the oldest are dropped.
        interval: Seconds during which values accumulate before they are taken together.

    Attributes:
        sent, lost: How much was sent, and how much can no longer be sent.
        trouble: Why an entry could not be written to the disk; None if all were written.
    """

    def __init__(self, outbox: Outbox, most: int, interval: float) -> None:
        self.sent, self.lost = Count(), Count()
        self.trouble: OSError | None = None
        self._outbox = outbox
        self._most, self._interval = most, interval
        self._changed = threading.Condition()
        self._ahead: deque[tuple[Entry, Place | None]] = deque()
        self._in_hand: deque[tuple[Entry, Place | None]] = deque()
        self._memory: deque[Entry] = deque()
        self._done: dict[File, threading.Event] = {}
        self._values = self._memory_values = 0
        self._next_take = 0.0
        self._latest = 0 if outbox.resumption is None else outbox.resumption.at + 1
        self._closed = self._abandoned = self._is_idle = False

    def put(self, entry: Entry) -> threading.Event:
        """Add an entry. For a file, the returned event is set once it is sent or given up."""
        done = threading.Event()
        with self._changed:
            self._keep(entry)
            if isinstance(entry, File):
                self._done[entry] = done
            elif isinstance(entry, Logged):
                self._values += len(entry.values)
            if self._is_idle or self._done or self._values >= _BATCH:  # waking the thread each time would slow the loop
                self._changed.notify_all()
        return done

    def end(self, ended: Ended) -> None:
        """Add the end of the run, in memory only if a resumed training failed before it logged anything."""
        if ended.status == "FAILED" and not self._outbox.is_taken_up:
            with self._changed:
                self._memory.append(ended)
            return
        self.put(ended)

    def stamp(self, *, own: bool = False) -> int:
        """Return the time in milliseconds since 1970; it never decreases, and with `own` it is unique."""
        with self._changed:
            self._latest = max(int(time.time() * 1000), self._latest + own)
            return self._latest

    def cut(self) -> int:
        """Return a time that separates all entries logged so far from all later ones."""
        with self._changed:
            self._latest += 1
            return self._latest - 1

    def take(self, *, merging: bool) -> File | Ended | Sequence[Logged]:
        """Wait for entries and take them in hand: values of some steps, or one other; none if closed and empty.

        With `merging` the values of one step become one entry.
        """
        while True:
            with self._changed:
                self._wait_until_it_is_time()
            while self._read_ahead():
                pass  # in small parts, so that the lock is never held for long
            with self._changed:
                if self._abandoned or (self._closed and not self._ahead):
                    return ()
                if self._ahead:
                    self._next_take = time.monotonic() + self._interval
                    return self._taken(merging)

    def settle(self, count: int, into: Count | None) -> None:
        """Drop the first entries in hand, and count them into `sent` or `lost`, or not at all (None)."""
        with self._changed:
            place: Place | None = None
            for _ in range(0 if self._abandoned else count):  # abandoned entries stay in the outbox
                entry, own = self._in_hand.popleft()
                place = own or place
                if into is not None:
                    into.add(entry)
                self._is_done(entry)
            if place is not None:
                with suppress(OSError):  # a later process may send it again: some trackers detect the duplicates
                    self._outbox.settle(place)

    def begun(self, run: object) -> None:
        """Store what is needed to resume the run."""
        with self._changed:
            self._outbox.begun(run)

    def pause(self, seconds: float) -> bool:
        """Wait before a retry, but not once the backlog is closed; return False if it was abandoned."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed, seconds)
            return not self._abandoned

    @property
    def is_closed(self) -> bool:
        """True if each entry gets only one more attempt."""
        with self._changed:
            return self._closed

    def close(self) -> None:
        """Let the remaining entries be taken without pauses; `take` no longer waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """Stop sending: present and future entries stay in the outbox."""
        with self._changed:
            self._closed = self._abandoned = True
            for done in self._done.values():
                done.set()
            self._changed.notify_all()

    def leave(self) -> Count:
        """Release the outbox, when the thread has ended or was abandoned. Return how much waits in it."""
        with self._changed:
            kept = [entry for entry, place in (*self._in_hand, *self._ahead) if place is None]
            self._memory.extendleft(reversed(kept))
            self._in_hand.clear()
            self._ahead.clear()
            if self._outbox.is_taken_up:
                self._write_memory()
            for entry in self._memory:
                self.lost.add(entry)
            for done in self._done.values():
                done.set()
            self._done.clear()
            self._memory.clear()
            self._values = self._memory_values = 0
            return self._left()

    def reopen(self) -> None:
        """Reopen the outbox on the disk, after `leave`."""
        with self._changed:
            self._outbox.reopen()

    @property
    def has_files(self) -> bool:
        """True if a file waits or is being sent."""
        with self._changed:
            return bool(self._done)

    def _keep(self, entry: Entry) -> None:
        """Write an entry to the disk, after those that failed before; keep it in memory if that fails."""
        self._memory.append(entry)
        self._memory_values += len(entry.values) if isinstance(entry, Logged) else 0
        self._write_memory()
        while self._memory_values > self._most:
            self._drop_oldest()

    def _write_memory(self) -> None:
        try:
            while self._memory:
                self._outbox.add(self._memory[0])
                self._pop_memory()
        except OSError as error:
            self.trouble = error

    def _pop_memory(self) -> Entry:
        entry = self._memory.popleft()
        self._memory_values -= len(entry.values) if isinstance(entry, Logged) else 0
        return entry

    def _drop_oldest(self) -> None:
        number = next(n for n, entry in enumerate(self._memory) if isinstance(entry, Logged))
        entry = self._memory[number]
        del self._memory[number]
        assert isinstance(entry, Logged)
        self._memory_values -= len(entry.values)
        self.lost.add(entry)

    def _wait_until_it_is_time(self) -> None:
        self._is_idle = True
        self._changed.wait_for(lambda: self._has_more() or self._closed)
        self._is_idle = False
        # Values that accumulate in the meantime are sent in the same call.
        pause = self._next_take - time.monotonic()
        if pause > 0:
            self._changed.wait_for(lambda: self._closed or self._is_urgent(), pause)

    def _has_more(self) -> bool:
        return bool(self._ahead or self._memory or (self._outbox.is_taken_up and self._outbox.unread))

    def _is_urgent(self) -> bool:
        far_behind = bool(self._ahead) or self._outbox.unread > _FAR_BEHIND
        return bool(self._done) or self._values >= _BATCH or far_behind

    def _read_ahead(self) -> bool:
        """Read more entries ahead; return False if there are enough, or no more."""
        with self._changed:
            if self._abandoned or len(self._ahead) >= _BATCH:
                return False
            entries = self._outbox.read() if self._outbox.is_taken_up else []
            self._ahead.extend(entries)
            self.lost.unreadable, self._outbox.unreadable = self.lost.unreadable + self._outbox.unreadable, 0
            if not self._ahead:
                while self._memory:
                    self._ahead.append((self._pop_memory(), None))
            return bool(entries)

    def _taken(self, merging: bool) -> File | Ended | Sequence[Logged]:
        """Take the next entry, or all values up to another kind of entry, another resumption or the batch size."""
        first = self._ahead[0][0]
        if not isinstance(first, Logged):
            self._in_hand.append(self._ahead.popleft())
            return first
        values: list[Logged] = []
        places: list[Place | None] = []
        size = 0
        while self._ahead and isinstance(entry := self._ahead[0][0], Logged):
            size += len(entry.values)
            if values and (size > _BATCH or entry.resumption != values[0].resumption):
                break
            values.append(entry)
            places.append(self._ahead.popleft()[1])
        self._values = max(0, self._values - sum(len(entry.values) for entry in values))
        number = 0
        taken = merged(values) if merging else [(entry, 1) for entry in values]
        for entry, count in taken:
            number += count
            self._in_hand.append((entry, places[number - 1]))
        return [entry for entry, _ in taken]

    def _left(self) -> Count:
        outbox = self._outbox
        if not outbox.is_taken_up:
            outbox.release()
            return Count()
        left = outbox.left()
        if left:
            outbox.release()
        else:
            outbox.remove()
        return left

    def _is_done(self, entry: Entry) -> None:
        if isinstance(entry, File) and entry in self._done:
            self._done.pop(entry).set()

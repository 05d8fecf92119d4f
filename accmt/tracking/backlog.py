"""What waits to be sent to a tracker: in order and bounded, between the loop and the thread that sends it."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from accmt.tracking.tracker import Logged

_BATCH = 1000


@dataclass(frozen=True, slots=True)
class File:
    """A file, or a folder of files, to be sent. `done` is set when it is sent, or given up."""

    path: Path
    is_folder: bool
    done: threading.Event = field(default_factory=threading.Event)


Entry = Logged | File


@dataclass(slots=True)
class Count:
    """How much was not sent: values and the range of their steps, and files."""

    values: int = 0
    first: float = math.inf
    last: float = -math.inf
    files: int = 0

    def add(self, entry: Entry) -> None:
        """Count an entry."""
        if isinstance(entry, File):
            self.files += 1
            return
        self.values += len(entry.values)
        self.first, self.last = min(self.first, entry.step), max(self.last, entry.step)

    def __str__(self) -> str:
        parts = []
        if self.values:
            steps = f"step {self.first}" if self.first == self.last else f"steps {self.first} to {self.last}"
            parts.append(f"{self.values:,} value{'s' * (self.values != 1)} ({steps})")
        if self.files:
            parts.append(f"{self.files} artifact{'s' * (self.files != 1)}")
        return ", ".join(parts)


class Backlog:
    """A queue that never blocks who fills it: when it is full, the oldest values are left out, and counted.

    The thread that empties it takes entries in hand, and says of each whether it was sent.

    Args:
        most: The number of values that may wait.
        interval: Seconds in which values gather before they are taken together.
    """

    def __init__(self, most: int, interval: float) -> None:
        self._most, self._interval = most, interval
        self._changed = threading.Condition()
        self._waiting: deque[Entry] = deque()
        self._in_hand: deque[Entry] = deque()
        self._values = self._files = 0
        self._next_take = 0.0
        self._closed = self._abandoned = False
        self._lost = Count()

    def put(self, entry: Entry) -> bool:
        """Add an entry; whether all that waits found a place."""
        with self._changed:
            if self._abandoned:
                self._lose(entry)
                return True
            self._waiting.append(entry)
            self._count(entry, 1)
            fits = self._values <= self._most
            while self._values > self._most:
                self._drop_oldest()
            if len(self._waiting) == 1 or isinstance(entry, File) or self._values >= _BATCH:
                self._changed.notify_all()
            return fits

    def take(self, *, merging: bool) -> File | Sequence[Logged]:
        """Wait for entries and take them in hand: a file, or values of some steps; none if it is closed and empty.

        With `merging` the values of one step become one entry.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            # What gathers in the meantime goes along in one call.
            pause = self._next_take - time.monotonic()
            if pause > 0:
                self._changed.wait_for(lambda: self._closed or self._files or self._values >= _BATCH, pause)
            self._next_take = time.monotonic() + self._interval
            if self._abandoned or not self._waiting:
                return ()
            entry = self._waiting[0]
            if isinstance(entry, File):
                self._in_hand.append(self._pop())
                return entry
            taken = self._pop_values()
            taken = merged(taken) if merging else taken
            self._in_hand.extend(taken)
            return taken

    def settle(self, count: int, *, lost: bool) -> None:
        """Say that the first entries in hand were sent, or that they are lost."""
        with self._changed:
            for _ in range(0 if self._abandoned else count):  # what was abandoned is counted
                entry = self._in_hand.popleft()
                if isinstance(entry, File):
                    entry.done.set()
                if lost:
                    self._lost.add(entry)

    def pause(self, seconds: float) -> bool:
        """Wait before another attempt; False if there is to be none, because the backlog was closed before."""
        with self._changed:
            if self._closed:
                return False
            self._changed.wait_for(lambda: self._closed, seconds)
            return not self._abandoned

    def close(self) -> None:
        """Let what is there be taken without pauses; `take` does not wait any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """Give up what is there and all that will come."""
        with self._changed:
            self._closed = self._abandoned = True
            self._give_up()
            self._changed.notify_all()

    def drop(self) -> Count:
        """Give up what is there. How much was not sent since the last time."""
        with self._changed:
            self._give_up()
            lost, self._lost = self._lost, Count()
            return lost

    @property
    def has_files(self) -> bool:
        """Whether a file waits or is being sent."""
        with self._changed:
            return self._files > 0 or any(isinstance(entry, File) for entry in self._in_hand)

    def _pop(self) -> Entry:
        entry = self._waiting.popleft()
        self._count(entry, -1)
        return entry

    def _pop_values(self) -> list[Logged]:
        """All values up to the next file, or as many as go into a batch."""
        taken: list[Logged] = []
        size = 0
        while self._waiting and isinstance(entry := self._waiting[0], Logged):
            size += len(entry.values)
            if taken and size > _BATCH:
                break
            self._pop()
            taken.append(entry)
        return taken

    def _drop_oldest(self) -> None:
        number = next(n for n, entry in enumerate(self._waiting) if isinstance(entry, Logged))
        entry = self._waiting[number]
        del self._waiting[number]
        self._count(entry, -1)
        self._lost.add(entry)

    def _count(self, entry: Entry, sign: int) -> None:
        if isinstance(entry, File):
            self._files += sign
        else:
            self._values += sign * len(entry.values)

    def _give_up(self) -> None:
        for entry in (*self._in_hand, *self._waiting):
            self._lose(entry)
        self._in_hand.clear()
        self._waiting.clear()
        self._values = self._files = 0

    def _lose(self, entry: Entry) -> None:
        self._lost.add(entry)
        if isinstance(entry, File):
            entry.done.set()


def merged(entries: Sequence[Logged]) -> list[Logged]:
    """Entries of the same step as one, where no name is in both."""
    result: list[Logged] = []
    for entry in entries:
        last = result[-1] if result else None
        if last is not None and last.step == entry.step and last.values.keys().isdisjoint(entry.values):
            result[-1] = Logged({**last.values, **entry.values}, last.step, entry.time)
        else:
            result.append(entry)
    return result

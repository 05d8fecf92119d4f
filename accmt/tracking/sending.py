"""A thread for each tracker sends what waits for it, so that a slow or dead one holds up neither a training nor others.

The clients of trackers block, MLflow's for minutes, and several demand to be used by the thread that created them: one
thread for all trackers could not keep a dead one from delaying the others.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic

from accmt.rules.printable import masked
from accmt.tracking.outbox import Outbox, OutboxReader
from accmt.tracking.records import Artifact, Entry, EntryCount, RunEnd
from accmt.tracking.tracker import BatchTracker, Logged, NoArtifacts, Tracker, Unreachable

BATCH = 1000
_LONGEST_REASON = 300


@dataclass(frozen=True, slots=True)
class SendingLimits:
    """Limits of waiting for a tracker, in seconds.

    Attributes:
        interval: Between two calls, while values accumulate.
        start: For a tracker to begin a run; after that the training starts without it.
        artifact: For an artifact to be sent; after that the training continues.
        end: For pending entries at the end of the training.
        end_with_artifacts: The same, if artifacts are among them.
        end_when_killed: The same, if the training is being killed.
        pause: The maximum between two attempts.
    """

    interval: float = 1.0
    start: float = 10.0
    artifact: float = 60.0
    end: float = 30.0
    end_with_artifacts: float = 600.0
    end_when_killed: float = 5.0
    pause: float = 60.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """Fate of what was given to a tracker.

    Attributes:
        sent: What was sent.
        left: What remains in the outbox.
        lost: What can no longer be sent.
        why_left, why_lost: The reasons, as far as known.
        refused: Why an artifact is not sent, one line each.
    """

    sent: EntryCount
    left: EntryCount
    lost: EntryCount
    why_left: str
    why_lost: str
    refused: tuple[str, ...] = ()


class Sender:
    """Thread that sends what waits for a tracker, in order.

    Values that accumulate during a call to the tracker are sent together. While the tracker is unreachable, the call
    is retried; entries that it rejects are dropped. Each kind of problem is one warning.

    Args:
        name: The name of the tracker in warnings.
        outbox, reader: What waits.
        make: Creates the tracker. It is called on the thread that calls the tracker's methods, as some tools need that.
        warn: Receives a warning.
        limits: How long to wait for what.
        refuse: An artifact that an earlier process recorded -> why it is not sent; None if it may be. An artifact that
            this process gives is always sent.
    """

    def __init__(
        self,
        name: str,
        outbox: Outbox,
        reader: OutboxReader,
        make: Callable[[], Tracker],
        warn: Callable[[str], None],
        limits: SendingLimits,
        refuse: Callable[[Artifact], str | None] = lambda artifact: None,
    ) -> None:
        self.name, self.reader, self.limits = name, reader, limits
        self.is_killed = False
        self.end_unlogged: RunEnd | None = None
        self._outbox, self._make, self._warn, self._refuse = outbox, make, warn, refuse
        self._tracker: Tracker | None = None
        self._thread: threading.Thread | None = None
        self._tried, self._closing, self._wake = threading.Event(), threading.Event(), threading.Event()
        self._refusal: Exception | None = None
        self._is_abandoned = self._is_slow = False
        self._outage = self._refused = ""
        self._given: dict[Artifact, threading.Event] = {}
        self._refused_artifacts: list[str] = []
        self._warned: set[str] = set()

    def start(self, *, may_be_late: bool) -> Exception | None:
        """Begin the run and wait until it has begun.

        Args:
            may_be_late: Whether the training can start without the tracker if it takes too long.

        Returns:
            The exception by which the tracker rejects the run, if it does; later entries then stay in the outbox.
        """
        self.work()
        if not self._tried.wait(self.limits.start if may_be_late else None):
            self._warn_once(
                "down", f"{self.name} does not answer yet: the training starts, and its values are sent later"
            )
        return self._refusal

    def work(self) -> None:
        """Start the thread, if it does not run and the tracker was neither abandoned nor rejects the run."""
        is_running = self._thread is not None and self._thread.is_alive()
        if not is_running and self._refusal is None and not self._is_abandoned:
            self._thread = threading.Thread(target=self._work, name=f"tracker {self.name}", daemon=True)
            self._thread.start()

    def wake(self) -> None:
        """Have entries sent now that would otherwise accumulate."""
        self._wake.set()

    def expect(self, artifact: Artifact) -> None:
        """Announce an artifact that is about to be added to the outbox by this process."""
        self._given[artifact] = threading.Event()

    def wait_for(self, artifact: Artifact, since: float) -> None:
        """Wait for an artifact that was added at time `since`, but not again for a tracker that hangs."""
        is_hopeless = self._outage or self._is_slow or self._is_abandoned or self._refusal is not None
        patience = 0.0 if is_hopeless else since + self.limits.artifact - monotonic()
        if not self._given[artifact].wait(max(0.0, patience)):
            self._is_slow = True
            path = artifact.path
            self._warn(f"{self.name}: '{path}' is not sent yet: do not change it while the training runs")

    def close(self) -> None:
        """Have everything sent without pauses, and do not wait for it."""
        self._closing.set()
        self._wake.set()

    def join(self, since: float) -> None:
        """Wait for the thread to end after `close`, in a bounded time since a moment, or abandon the tracker."""
        if self._thread is not None and not self._is_abandoned:
            self._thread.join(max(0.0, since + self._time_at_end() - monotonic()))
            if self._thread.is_alive():
                self._abandon()
                self._outage = self._outage or "it did not answer in time"

    def delivery(self) -> Delivery:
        """Return what was sent and what was not, after `join` and the release of the outbox."""
        reader, refused, self._refused_artifacts = self.reader, tuple(self._refused_artifacts), []
        why_left, why_lost = self._outage or self._refused, self._refused or str(self._outbox.trouble or "")
        return Delivery(reader.sent, reader.left, reader.lost, why_left, why_lost, refused)

    def reopen(self, outbox: Outbox) -> None:
        """Read from an outbox that was opened again after its release."""
        position = replace(self.reader.position, part=0, offset=0)
        self._outbox, self.reader = outbox, outbox.read_by(position, self.reader.resumption)

    def run(self) -> object:
        """Return what is needed to resume the run."""
        return self.reader.position.run if self._tracker is None else self._tracker.state().get(self.name)

    def _time_at_end(self) -> float:
        if self.is_killed:
            return self.limits.end_when_killed
        waits = not all(done.is_set() for done in self._given.values())
        return self.limits.end_with_artifacts if waits else self.limits.end

    def _abandon(self) -> None:
        """Stop sending: present and future entries stay in the outbox."""
        with self._outbox.lock:
            self._is_abandoned = True
            for done in self._given.values():
                done.set()

    def _work(self) -> None:
        """Run on the thread: send everything, and leave it in the outbox if that cannot be read."""
        try:
            self._send_all()
        except Exception as error:
            self._refused = _reason(error)
            self._abandon()

    def _send_all(self) -> None:
        """Create the tracker, and send entries until all are sent and the sender is closed."""
        if self._call(self._begin) is not None or self._tracker is None:
            return
        while not self._is_abandoned:
            self._wake.clear()
            is_closed = self._closing.is_set()
            entries = self.reader.next(BATCH)
            if not all(self._send(self._tracker, group) for group in self._groups(entries)):
                return
            if is_closed and not entries:
                break
            if len(entries) < BATCH and not is_closed:
                self._wake.wait(self.limits.interval)
        end, self.end_unlogged = self.end_unlogged, None
        if end is not None and not self._is_abandoned:
            self._call(partial(self._tracker.close, end.status, end.time))

    def _begin(self) -> None:
        """Create the tracker, if there is none."""
        try:
            if self._tracker is None:
                self._tracker = self._make()
                self.reader.begun(self._tracker.state().get(self.name))
        except Unreachable:
            raise
        except Exception as error:
            self._refusal = error
            raise
        finally:
            self._tried.set()

    def _groups(self, entries: Sequence[Entry]) -> Iterator[list[Entry]]:
        """Divide entries into those of one call: an artifact, an end, or values.

        A tracker that takes values of one step only gets those that share no name; others get a batch.
        """
        is_batch = isinstance(self._tracker, BatchTracker)
        group: list[Entry] = []
        names: set[str] = set()
        size = 0
        for entry in entries:
            last = group[-1] if group else None
            fits = isinstance(last, Logged) and isinstance(entry, Logged) and last.resumption == entry.resumption
            if fits and isinstance(last, Logged) and isinstance(entry, Logged):
                is_same_call = last.step == entry.step and names.isdisjoint(entry.values)
                fits = size + len(entry.values) <= BATCH if is_batch else is_same_call
            if group and not fits:
                yield group
                group, names, size = [], set(), 0
            group.append(entry)
            if isinstance(entry, Logged):
                names.update(entry.values)
                size += len(entry.values)
        if group:
            yield group

    def _send(self, tracker: Tracker, group: Sequence[Entry]) -> bool:
        """Send entries that belong together; return False if the tracker is unreachable and time is up."""
        first = group[0]
        if isinstance(first, Artifact):
            return self._send_artifact(tracker, first)
        if isinstance(first, RunEnd):
            return self._settle(1, self._call(partial(tracker.close, first.status, first.time)))
        values = [entry for entry in group if isinstance(entry, Logged)]
        if isinstance(tracker, BatchTracker):
            failure = self._call(partial(tracker.log_batch, values))
            if failure is not None and not isinstance(failure, Unreachable) and len(group) > 1:
                return all(self._send(tracker, [entry]) for entry in group)  # it may reject only one of them
        else:
            merged = {name: value for entry in values for name, value in entry.values.items()}
            failure = self._call(partial(tracker.log, merged, first.step))
        if failure is not None and not isinstance(failure, Unreachable):
            self._warn_once("values", f"{self.name}: the tracker rejects the values: {_reason(failure)}")
        return self._settle(len(group), failure)

    def _send_artifact(self, tracker: Tracker, artifact: Artifact) -> bool:
        path = artifact.path
        if os.path.lexists(path) and artifact not in self._given and (why := self._refuse(artifact)) is not None:
            self._refused_artifacts.append(f"'{path}' {why}")
            self._warn(f"{self.name}: not sent, as it waits since an earlier process: '{path}' {why}")
            return self._keep(artifact)
        if not (path.is_dir() if artifact.is_folder else path.is_file()):
            self._warn(f"{self.name}: '{path}' no longer exists: it cannot be sent")
            self._refused = f"'{path}' no longer exists"
            return self._settle(1, FileNotFoundError())
        failure = self._call(partial(tracker.log_artifacts if artifact.is_folder else tracker.log_artifact, path))
        if failure is None or isinstance(failure, Unreachable):
            return self._settle(1, failure)
        self._warn_once(_reason(failure), f"{self.name}: the tracker rejects the artifact '{path}': {_reason(failure)}")
        return self._settle(1, failure) if isinstance(failure, NoArtifacts) else self._keep(artifact)

    def _keep(self, artifact: Artifact) -> bool:
        """Leave an artifact to a later process."""
        with self._outbox.lock:
            self.reader.kept.append(artifact)
        return self._settle(1, NoArtifacts())

    def _settle(self, count: int, failure: Exception | None) -> bool:
        """Settle the next entries, as sent or lost; return False if the tracker is unreachable or was abandoned."""
        with self._outbox.lock:
            if isinstance(failure, Unreachable) or self._is_abandoned:
                return False
            into = self.reader.sent if failure is None else self.reader.lost
            for entry in self.reader.settle(count, None if isinstance(failure, NoArtifacts) else into):
                if isinstance(entry, Artifact) and entry in self._given:
                    self._given[entry].set()
            return True

    def _call(self, call: Callable[[], None]) -> Exception | None:
        """Call the tracker, with retries while it is unreachable. Return its exception, None if it succeeded."""
        pause = 1.0
        while True:
            is_last = self._closing.is_set()
            try:
                call()
            except Unreachable as error:
                self._outage = _reason(error)
                self._warn_once(
                    "down", f"{self.name} does not answer, the training continues without it: {self._outage}"
                )
                if is_last or self._is_abandoned:
                    return error
                self._closing.wait(min(pause, self.limits.pause))
                pause *= 2
            except Exception as error:
                self._outage, self._refused = "", _reason(error)
                return error
            else:
                self._outage, self._is_slow = "", False
                return None

    def _warn_once(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            self._warn(text)


def _reason(error: Exception) -> str:
    """Format an exception in one line."""
    text = " ".join(masked(error).split())[:_LONGEST_REASON]
    return text if isinstance(error, Unreachable | NoArtifacts) else f"{type(error).__name__}: {text}"

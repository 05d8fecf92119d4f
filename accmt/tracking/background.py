"""Background trackers: a thread for each, so that a slow or dead one neither stops nor slows a training."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

from accmt.files.paths import resolved
from accmt.rules.printable import masked
from accmt.tracking.backlog import Backlog
from accmt.tracking.entries import Count, Ended, Entry, File
from accmt.tracking.outbox import Outbox
from accmt.tracking.tracker import BatchTracker, Logged, NoArtifacts, Status, Tracker, Unreachable

_LONGEST_REASON = 300


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of waiting for a tracker, in values and in seconds.

    Attributes:
        values: Values that may wait in memory while the disk cannot be written; beyond that the oldest are dropped.
        interval: Between two calls, while values accumulate.
        start: For a tracker to begin a run; after that the training starts without it.
        artifact: For an artifact to be sent; after that the training continues.
        end: For pending entries at the end of the training.
        end_with_artifacts: The same, if artifacts are among them.
        end_when_killed: The same, if the training is being killed.
        pause: The maximum between two attempts.
    """

    values: int = 100_000
    interval: float = 1.0
    start: float = 10.0
    artifact: float = 60.0
    end: float = 30.0
    end_with_artifacts: float = 600.0
    end_when_killed: float = 5.0
    pause: float = 60.0


LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome of everything that was given to a tracker.

    Attributes:
        sent: What was sent.
        left: What remains in the outbox.
        lost: What can no longer be sent.
        why_left, why_lost: The reasons, as far as known.
        refused: Why an artifact is not sent, one line each.
    """

    sent: Count
    left: Count
    lost: Count
    why_left: str
    why_lost: str
    refused: tuple[str, ...] = ()


class BackgroundTracker:
    """Tracker that sends from a thread of its own, in order.

    The methods for the loop never raise, and wait only for artifacts. An entry is in the outbox, on the disk, when the
    call returns. Values that accumulate during a call to the tracker are sent together. While the tracker is
    unreachable, the call is retried; entries that the tracker rejects are dropped. Each kind of problem is one warning,
    and what remains unsent at the end is one more.

    Args:
        name: The name of the tracker in warnings.
        make: Creates the tracker. It is called on the thread that calls the tracker's methods, as some tools need that.
        warn: Receives a warning.
        outbox: Holds the entries that were not sent yet.
        later: The command that sends them after the training.
        limits: How long to wait for what.
        refuse: A file that an earlier process recorded -> why it is not sent; None if it may be. A file that this
            process gives is always sent.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], Tracker],
        warn: Callable[[str], None],
        outbox: Outbox,
        *,
        later: str,
        limits: Limits | None = None,
        refuse: Callable[[File], str | None] = lambda file: None,
    ) -> None:
        self.name = name
        self._make, self._warn, self._later, self._refuse = make, warn, later, refuse
        self._limits = limits or LIMITS
        self._outbox = outbox
        self._backlog = Backlog(outbox, self._limits.values, self._limits.interval)
        self._tracker: Tracker | None = None
        self._thread: threading.Thread | None = None
        self._tried = threading.Event()
        self._refusal: Exception | None = None
        self._is_closed = self._is_stuck = self._is_killed = self._is_slow = False
        self._outage = self._refused = ""
        self._not_taken: list[File] = []
        self._given: set[File] = set()
        self._refused_files: list[str] = []
        self._warned: set[str] = set()

    def start(self, *, may_be_late: bool) -> None:
        """Begin the run and wait until it has begun.

        Args:
            may_be_late: Whether the training can start without the tracker if it takes too long.

        Raises:
            Exception: The tracker rejects the run; later entries stay in the outbox.
        """
        self.work()
        if not self._tried.wait(self._limits.start if may_be_late else None):
            self._warn_once("down", f"{self.name} does not answer yet: the training starts, and it is told later")
        if self._refusal is not None:
            raise self._refusal

    def log(self, values: Mapping[str, float], step: int) -> None:
        if self.tell(values, step):
            self.finish_and_say()

    def tell(self, values: Mapping[str, float], step: int) -> bool:
        """Log without waiting; return True if the tracker is closed, so that the caller has to wait."""
        numbers: dict[str, float] = {}
        for name, value in values.items():
            try:
                numbers[str(name)] = float(value)
            except Exception:
                self._warn_once(f"value {name}", f"{self.name}: '{name}' is no number at step {step}: it is not sent")
        if not numbers or (number := self._whole(step)) is None:
            return False
        self._put(Logged(numbers, number, self._backlog.stamp(), self._outbox.resumption))
        return self._is_closed

    def log_artifact(self, path: Path) -> None:
        """Send a file after earlier entries. Wait up to `artifact` seconds, so that the file may change afterwards."""
        self.await_file(self.tell_file(path, is_folder=False), monotonic())

    def log_artifacts(self, folder: Path) -> None:
        """Send all files of a folder after earlier entries, waiting like `log_artifact`."""
        self.await_file(self.tell_file(folder, is_folder=True), monotonic())

    def tell_file(self, path: Path, *, is_folder: bool) -> tuple[File, threading.Event] | None:
        """Queue a file or a folder without waiting, which `await_file` does. None if it does not exist."""
        try:
            place = resolved(path)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            self._warn(f"{self.name}: '{path}' cannot be sent: {_reason(error)}")
            return None
        if not _is_there(place, is_folder):
            self._warn(f"{self.name}: there is no {'folder' if is_folder else 'file'} '{place}' to send")
            return None
        file = File(place, is_folder, self._backlog.stamp(own=True))
        self._given.add(file)
        return file, self._put(file)

    def await_file(self, told: tuple[File, threading.Event] | None, since: float) -> None:
        """Wait for a file that was queued at time `since`, but not again for a tracker that hangs."""
        if told is None:
            return
        if self._is_closed:
            self.finish_and_say(since)
            return
        file, done = told
        patience = 0.0 if self._outage or self._is_slow else since + self._limits.artifact - monotonic()
        if not done.wait(max(0.0, patience)):
            self._is_slow = True
            self._warn(f"{self.name}: '{file.path}' is not sent yet: leave it as it is while the training goes on")

    def state(self) -> dict[str, Any]:
        """Return the state for a training that resumes from here: training, run, and the time of the last value."""
        run = self._outbox.run if self._tracker is None else self._tracker.state().get(self.name)
        return {self.name: {"training": self._outbox.recipient.training, "until": self._backlog.cut(), "run": run}}

    def close(self, status: Status, time: int | None = None) -> None:
        """Send pending entries, in a bounded time, and end the run. Warn about what could not be sent."""
        self.close_soon(status, time)
        self.finish_and_say()

    def close_soon(self, status: Status | None, time: int | None = None) -> None:
        """Have everything sent without pauses, and do not wait for it. With None the run is not ended."""
        if self._is_closed:
            self._backlog.reopen()
        self._is_killed = status == "KILLED"
        if status is not None:
            self._backlog.end(Ended(status, self._backlog.stamp() if time is None else time))
        self._backlog.close()
        if self._is_closed and not self._is_stuck:
            self.work()

    def finish(self, since: float | None = None) -> Outcome:
        """Wait for the thread to end, in a bounded time, after `close_soon`.

        Args:
            since: Start of the time limit, if several trackers are awaited together; None is now.
        """
        self._is_closed = True
        if self._thread is not None and not self._is_stuck:
            waited = 0.0 if since is None else monotonic() - since
            self._thread.join(max(0.0, self._time_left() - waited))
            self._is_stuck = self._thread.is_alive()
        if self._is_stuck:
            self._backlog.abandon()
            self._outage = self._outage or "it did not answer in time"
        for file in self._not_taken:
            self._backlog.put(file)
        self._not_taken, left = [], Count()
        try:
            left = self._backlog.leave()
        except OSError as error:
            self._warn(f"{self.name}: its outbox cannot be read: {error}")
        sent, self._backlog.sent = self._backlog.sent, Count()
        lost, self._backlog.lost = self._backlog.lost, Count()
        disk = str(self._backlog.trouble or "")
        refused, self._refused_files = tuple(self._refused_files), []
        return Outcome(sent, left, lost, self._outage or self._refused, self._refused or disk, refused)

    def _time_left(self) -> float:
        if self._is_killed:
            return self._limits.end_when_killed
        return self._limits.end_with_artifacts if self._backlog.has_files else self._limits.end

    def finish_and_say(self, since: float | None = None) -> None:
        """Wait like `finish`, and warn about what was not sent."""
        outcome = self.finish(since)
        if outcome.lost:
            self._warn("; ".join(filter(None, [f"{self.name}: not sent: {outcome.lost}", outcome.why_lost])))
        if outcome.left:
            parts = [f"{self.name}: not sent yet: {outcome.left}", outcome.why_left, f"later: {self._later}"]
            self._warn("; ".join(filter(None, parts)))

    def _whole(self, step: Any) -> int | None:
        with suppress(Exception):
            if int(step) == step:
                return int(step)
        self._warn_once("step", f"{self.name}: the step {step!r} is no whole number: its values are not sent")
        return None

    def _put(self, entry: Entry) -> threading.Event:
        if self._is_closed:  # for example `trainer.log_artifact` after `fit`
            self._backlog.reopen()
        done = self._backlog.put(entry)
        if self._backlog.trouble is not None:
            text = "what is not sent before the end of the training may be lost"
            self._warn_once("disk", f"{self.name}: its outbox cannot be written ({self._backlog.trouble}): {text}")
        if self._is_closed and not self._is_stuck:
            self.work()
        return done

    def work(self) -> None:
        """Start the thread if it is not running; `start` does the same, and waits."""
        if self._refusal is None and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._work, name=f"tracker {self.name}", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        """Run on the thread: send everything, and leave it in the outbox if that cannot be read."""
        try:
            self._send_all()
        except Exception as error:
            self._refused = _reason(error)
            self._backlog.abandon()

    def _send_all(self) -> None:
        """Create the tracker, and send entries until the backlog is closed."""
        pauses, is_last = self._pauses(), self._backlog.is_closed
        while not self._make_tracker():
            if is_last or not self._backlog.pause(next(pauses)):
                return
            is_last = self._backlog.is_closed
        tracker = self._tracker
        if tracker is None:
            return
        merging = not isinstance(tracker, BatchTracker)
        while job := self._backlog.take(merging=merging):
            if not self._send(tracker, job):
                return

    def _make_tracker(self) -> bool:
        """Create the tracker, if there is none; return False if a retry may succeed."""
        try:
            if self._tracker is None:
                self._tracker = self._make()
                self._backlog.begun(self._tracker.state().get(self.name))
        except Unreachable as error:
            self._is_unreachable(error)
            return False
        except Exception as error:
            self._refusal, self._refused = error, _reason(error)
            self._backlog.abandon()
        finally:
            self._tried.set()
        return True

    def _send(self, tracker: Tracker, job: File | Ended | Sequence[Logged]) -> bool:
        """Send the entries in hand; return False if the tracker is unreachable and time is up."""
        if isinstance(job, File):
            return self._send_file(tracker, job)
        if isinstance(job, Ended):
            return self._send_end(tracker, job)
        if not isinstance(tracker, BatchTracker):
            return all(self._send_values(tracker, entry) for entry in job)
        failure = self._call(partial(tracker.log_batch, job))
        if failure is None or isinstance(failure, Unreachable) or len(job) == 1:
            return self._settle(failure, count=len(job))
        # The tracker may reject only one of them.
        return all(self._send(tracker, [entry]) for entry in job)

    def _send_values(self, tracker: Tracker, entry: Logged) -> bool:
        return self._settle(self._call(partial(tracker.log, entry.values, entry.step)))

    def _send_end(self, tracker: Tracker, ended: Ended) -> bool:
        failure = self._call(partial(tracker.close, ended.status, ended.time))
        if failure is None or isinstance(failure, Unreachable):
            return self._settle(failure)
        self._backlog.settle(1, self._backlog.lost)
        return True

    def _send_file(self, tracker: Tracker, file: File) -> bool:
        if os.path.lexists(file.path) and file not in self._given and (why := self._refuse(file)) is not None:
            self._refused_files.append(f"'{file.path}' {why}")
            self._warn(f"{self.name}: not sent, as it waits since an earlier process: '{file.path}' {why}")
            self._not_taken.append(file)
            self._backlog.settle(1, None)
            return True
        if not _is_there(file.path, file.is_folder):
            self._warn(f"{self.name}: '{file.path}' is gone: it cannot be sent any more")
            self._refused = f"'{file.path}' is gone"
            self._backlog.settle(1, self._backlog.lost)
            return True
        send = tracker.log_artifacts if file.is_folder else tracker.log_artifact
        failure = self._call(partial(send, file.path))
        if failure is not None and not isinstance(failure, Unreachable | NoArtifacts):
            self._warn_once(
                _reason(failure), f"{self.name}: the tracker takes no artifact '{file.path}': {_reason(failure)}"
            )
            self._not_taken.append(file)
            self._backlog.settle(1, None)
            return True
        return self._settle(failure, f"takes no artifact '{file.path}'", _reason(failure))

    def _call(self, call: Callable[[], None]) -> Exception | None:
        """Call the tracker, with retries while it is unreachable. Return its exception, None if it succeeded."""
        pauses = self._pauses()
        while True:
            is_last = self._backlog.is_closed
            try:
                call()
            except Unreachable as error:
                self._is_unreachable(error)
                if is_last or not self._backlog.pause(next(pauses)):
                    return error
            except Exception as error:
                self._outage, self._refused = "", _reason(error)
                return error
            else:
                self._outage, self._is_slow = "", False
                return None

    def _settle(
        self, failure: Exception | None, refused: str = "takes no values", kind: str = "values", count: int = 1
    ) -> bool:
        if isinstance(failure, Unreachable):
            return False
        if failure is not None:
            self._warn_once(kind, f"{self.name}: the tracker {refused}: {_reason(failure)}")
        fate = self._backlog.sent if failure is None else self._backlog.lost
        self._backlog.settle(count, None if isinstance(failure, NoArtifacts) else fate)
        return True

    def _is_unreachable(self, error: Unreachable) -> None:
        self._outage = _reason(error)
        self._warn_once("down", f"{self.name} does not answer, the training goes on without: {self._outage}")

    def _pauses(self) -> Iterator[float]:
        pause = 1.0
        while True:
            yield min(pause, self._limits.pause)
            pause *= 2

    def _warn_once(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            self._warn(text)


class MultiTracker:
    """Several trackers as one; none waits for another, so all together take no longer than the slowest may."""

    def __init__(self, trackers: Sequence[BackgroundTracker]) -> None:
        self._trackers = tuple(trackers)

    def log(self, values: Mapping[str, float], step: int) -> None:
        since = monotonic()
        for tracker in [tracker for tracker in self._trackers if tracker.tell(values, step)]:
            tracker.finish_and_say(since)

    def log_artifact(self, path: Path) -> None:
        self._log_files(path, is_folder=False)

    def log_artifacts(self, folder: Path) -> None:
        self._log_files(folder, is_folder=True)

    def _log_files(self, path: Path, *, is_folder: bool) -> None:
        since = monotonic()
        for tracker, told in [(each, each.tell_file(path, is_folder=is_folder)) for each in self._trackers]:
            tracker.await_file(told, since)

    def state(self) -> dict[str, Any]:
        return {key: value for tracker in self._trackers for key, value in tracker.state().items()}

    def close(self, status: Status, time: int | None = None) -> None:
        since = monotonic()
        for tracker in self._trackers:
            tracker.close_soon(status, time)
        for tracker in self._trackers:
            tracker.finish_and_say(since)


def _is_there(path: Path, is_folder: bool) -> bool:
    return path.is_dir() if is_folder else path.is_file()


def _reason(error: Exception | None) -> str:
    """Format an exception in one line."""
    text = " ".join(masked(error).split())[:_LONGEST_REASON]
    return text if isinstance(error, Unreachable | NoArtifacts) else f"{type(error).__name__}: {text}"

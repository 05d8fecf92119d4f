"""Trackers in the background: a thread for each, so that a slow or dead one neither stops nor slows a training."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accmt.tracking.backlog import Backlog, Entry, File
from accmt.tracking.tracker import BatchTracker, Logged, NoArtifacts, Status, Tracker, Unreachable

_LONGEST_REASON = 300


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a tracker may hold up, in values and in seconds.

    Attributes:
        values: Values that may wait; beyond that the oldest are left out.
        interval: Between two calls, while values gather.
        start: For a tracker to begin a run before the training starts without it.
        artifact: For an artifact to be sent before the training goes on.
        end: For what still waits at the end of the training.
        end_with_artifacts: The same, if artifacts are among it.
        pause: The longest between two attempts.
    """

    values: int = 100_000
    interval: float = 1.0
    start: float = 10.0
    artifact: float = 60.0
    end: float = 30.0
    end_with_artifacts: float = 600.0
    pause: float = 60.0


LIMITS = Limits()


class BackgroundTracker:
    """Sends to a tracker from a thread of its own, in order.

    What the loop calls never raises and, but for artifacts, never waits. Values that gather while a call is under way
    go out together. While the tracker is unreachable the same call is tried again; what it refuses is left out. Each
    kind of trouble is one warning, and what was not sent in the end is one more.

    Args:
        name: What the tracker is called in warnings.
        make: Makes the tracker. It is called on the thread, as the tracker's methods are: some tools mind.
        warn: Takes a warning.
        former: The state of the run that is to be continued, until the tracker is made and has its own.
        limits: How long to wait for what.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], Tracker],
        warn: Callable[[str], None],
        former: Mapping[str, Any] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.name = name
        self._make, self._warn = make, warn
        self._former = dict(former or {})
        self._limits = limits or LIMITS
        self._backlog = Backlog(self._limits.values, self._limits.interval)
        self._tracker: Tracker | None = None
        self._thread: threading.Thread | None = None
        self._tried = threading.Event()
        self._refusal: Exception | None = None
        self._status: Status | None = None
        self._is_closed = self._is_down = self._is_stuck = False
        self._trouble = ""
        self._warned: set[str] = set()

    def start(self, *, may_be_late: bool) -> None:
        """Begin the run, and wait until it has begun.

        Args:
            may_be_late: Whether the training can start without the tracker if it takes too long.

        Raises:
            Exception: The tracker refuses; what is sent to it from now on is only counted.
        """
        self._work_in_background()
        if not self._tried.wait(self._limits.start if may_be_late else None):
            self._warn_once("down", f"{self.name} does not answer yet: the training starts, and it is told later")
        if self._refusal is not None:
            raise self._refusal

    def log(self, values: Mapping[str, float], step: int) -> None:
        numbers: dict[str, float] = {}
        for name, value in values.items():
            try:
                numbers[str(name)] = float(value)
            except Exception:
                self._warn_once(f"value {name}", f"{self.name}: '{name}' is no number at step {step}: it is not sent")
        if numbers and not self._put(Logged(numbers, step, time.time())):
            self._warn_once("full", f"{self.name} takes values more slowly than they come: the oldest are left out")

    def log_artifact(self, path: Path) -> None:
        """Send a file after what was logged before. It waits for a while, so that the file may change afterwards."""
        self._put_file(File(Path(path).absolute(), is_folder=False))

    def log_artifacts(self, folder: Path) -> None:
        """Send all files of a folder after what was logged before, waiting as `log_artifact` does."""
        self._put_file(File(Path(folder).absolute(), is_folder=True))

    def state(self) -> dict[str, Any]:
        return dict(self._former) if self._tracker is None else self._tracker.state()

    def close(self, status: Status) -> None:
        """Send what still waits, in a bounded time, and end the run. What could not be sent is said."""
        self.close_soon(status)
        self._finish()

    def close_soon(self, status: Status) -> None:
        """Have everything sent without pauses, and do not wait for it."""
        self._status = status
        self._backlog.close()

    def _put(self, entry: Entry) -> bool:
        fits = self._backlog.put(entry)
        if self._is_closed:  # such as by `trainer.log_artifact` after `fit`
            self._work_in_background()
            self._finish()
        return fits

    def _put_file(self, file: File) -> None:
        if not (file.path.is_dir() if file.is_folder else file.path.is_file()):
            self._warn(f"{self.name}: there is no {'folder' if file.is_folder else 'file'} '{file.path}' to send")
            return
        self._put(file)
        if not file.done.wait(0 if self._is_down else self._limits.artifact):
            self._warn(f"{self.name}: '{file.path}' is not sent yet: leave it as it is while the training goes on")

    def _finish(self) -> None:
        """Wait for the thread to end; say what was not sent."""
        self._is_closed = True
        if self._thread is not None and not self._is_stuck:
            limits = self._limits
            self._thread.join(limits.end_with_artifacts if self._backlog.has_files else limits.end)
            self._is_stuck = self._thread.is_alive()
        if self._is_stuck:
            self._backlog.abandon()
            self._trouble = self._trouble or "it did not answer in time"
        lost = [text for text in [str(self._backlog.drop())] if text]
        if self._status is not None and self._tracker is not None:
            lost.append(f"the status {self._status}")
        self._status = None
        if lost:
            self._warn(f"{self.name}: not sent: {', '.join(lost)}; {self._trouble or 'there was too much'}")

    def _work_in_background(self) -> None:
        if self._refusal is None and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._work, name=f"tracker {self.name}", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        """What the thread does: make the tracker, send what comes until the backlog is closed, end the run."""
        pauses = self._pauses()
        while not self._make_tracker():
            if not self._backlog.pause(next(pauses)):
                return
        tracker = self._tracker
        if tracker is None:
            return
        merging = not isinstance(tracker, BatchTracker)
        while job := self._backlog.take(merging=merging):
            if not self._send(tracker, job):
                return
        if self._status is not None and not self._is_stuck:
            failure = self._call(partial(tracker.close, self._status))
            self._status = None if failure is None else self._status

    def _make_tracker(self) -> bool:
        """Make the tracker, if there is none; False if it is worth another attempt."""
        try:
            self._tracker = self._tracker or self._make()
        except Unreachable as error:
            self._is_unreachable(error)
            return False
        except Exception as error:
            self._refusal, self._trouble = error, _reason(error)
            self._backlog.abandon()
        finally:
            self._tried.set()
        return True

    def _send(self, tracker: Tracker, job: File | Sequence[Logged]) -> bool:
        """Send what was taken in hand; False if the tracker is unreachable and time is up."""
        if isinstance(job, File):
            send = tracker.log_artifacts if job.is_folder else tracker.log_artifact
            failure = self._call(partial(send, job.path))
            return self._settle(failure, f"takes no artifact '{job.path}'", _reason(failure))
        if not isinstance(tracker, BatchTracker):
            return all(self._send_values(tracker, entry) for entry in job)
        failure = self._call(partial(tracker.log_batch, job))
        if failure is None or isinstance(failure, Unreachable) or len(job) == 1:
            return self._settle(failure, count=len(job))
        # One of them may be what it refuses.
        return all(self._send(tracker, [entry]) for entry in job)

    def _send_values(self, tracker: Tracker, entry: Logged) -> bool:
        return self._settle(self._call(partial(tracker.log, entry.values, entry.step)))

    def _call(self, call: Callable[[], None]) -> Exception | None:
        """Call the tracker, again and again while it is unreachable. What it failed with, None if it did not."""
        pauses = self._pauses()
        while True:
            try:
                call()
            except Unreachable as error:
                self._is_unreachable(error)
                if not self._backlog.pause(next(pauses)):
                    return error
            except Exception as error:
                self._is_down, self._trouble = False, _reason(error)
                return error
            else:
                self._is_down = False
                return None

    def _settle(
        self, failure: Exception | None, refused: str = "takes no values", kind: str = "values", count: int = 1
    ) -> bool:
        if isinstance(failure, Unreachable):
            return False
        if failure is not None:
            self._warn_once(kind, f"{self.name}: the tracker {refused}: {_reason(failure)}")
        self._backlog.settle(count, lost=failure is not None and not isinstance(failure, NoArtifacts))
        return True

    def _is_unreachable(self, error: Unreachable) -> None:
        self._is_down, self._trouble = True, _reason(error)
        self._warn_once("down", f"{self.name} does not answer, the training goes on without: {self._trouble}")

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
    """Several trackers as one; none of them waits for another."""

    def __init__(self, trackers: Sequence[BackgroundTracker]) -> None:
        self._trackers = tuple(trackers)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for tracker in self._trackers:
            tracker.log(values, step)

    def log_artifact(self, path: Path) -> None:
        for tracker in self._trackers:
            tracker.log_artifact(path)

    def log_artifacts(self, folder: Path) -> None:
        for tracker in self._trackers:
            tracker.log_artifacts(folder)

    def state(self) -> dict[str, Any]:
        return {key: value for tracker in self._trackers for key, value in tracker.state().items()}

    def close(self, status: Status) -> None:
        for tracker in self._trackers:
            tracker.close_soon(status)
        for tracker in self._trackers:
            tracker.close(status)


def _reason(error: Exception | None) -> str:
    """What went wrong, in one line."""
    text = " ".join(str(error).split())[:_LONGEST_REASON]
    return text if isinstance(error, Unreachable | NoArtifacts) else f"{type(error).__name__}: {text}"

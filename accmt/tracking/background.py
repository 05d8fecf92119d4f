"""The trackers of a training, in the background: whatever they do, they neither stop nor slow it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

from accmt.files.paths import resolved
from accmt.rules.printable import masked
from accmt.tracking.outbox import Outbox
from accmt.tracking.records import Artifact, Entry, RunEnd
from accmt.tracking.sending import BATCH, Sender, SendingLimits
from accmt.tracking.tracker import Logged, Status

LIMITS = SendingLimits()


class BackgroundTrackers:
    """Trackers that are sent everything from their own threads.

    The methods never raise, and wait only for artifacts and at the end, no longer than for the slowest tracker. An
    entry is in the outbox, on the disk, when the call returns. What remains unsent at the end is one warning for each
    tracker.

    Args:
        model_path: The folder of the training.
        outbox: Holds what waits.
        senders: One for each tracker.
        warn: Receives a warning.
        later: Name of each tracker -> the command that sends what waits after the training.
    """

    def __init__(
        self,
        model_path: Path,
        outbox: Outbox,
        senders: Sequence[Sender],
        warn: Callable[[str], None],
        later: Mapping[str, str],
    ) -> None:
        self._model_path, self._outbox, self._senders = model_path, outbox, tuple(senders)
        self._warn, self._later = warn, later
        self._names = " and ".join(sender.name for sender in senders)
        self._is_closed = False
        self._count = 0
        self._warned: set[str] = set()
        resumptions = [sender.reader.resumption for sender in senders]
        self._latest = max((each.at + 1 for each in resumptions if each is not None), default=0)

    def log(self, values: Mapping[str, float], step: int) -> None:
        numbers: dict[str, float] = {}
        for name, value in values.items():
            try:
                numbers[str(name)] = float(value)
            except Exception:
                self._warn_once(
                    f"value {name}", f"{self._names}: '{name}' is not a number at step {step}: it is not sent"
                )
        if numbers and (number := self._whole(step)) is not None:
            self._put(Logged(numbers, number, self._stamp()))

    def log_artifact(self, path: Path) -> None:
        """Send a file after earlier entries. Wait up to `artifact` seconds, so that the file may change afterwards."""
        self._log_files(path, is_folder=False)

    def log_artifacts(self, folder: Path) -> None:
        """Send all files of a folder after earlier entries, waiting like `log_artifact`."""
        self._log_files(folder, is_folder=True)

    def state(self) -> dict[str, Any]:
        """Return the state for a training that resumes from here: training, run, and the time of the last value."""
        self._latest += 1  # it separates what was logged so far from all that follows
        return {
            sender.name: {
                "training": sender.reader.position.recipient.training,
                "until": self._latest - 1,
                "run": sender.run(),
            }
            for sender in self._senders
        }

    def close(self, status: Status, time: int | None = None) -> None:
        """Send pending entries, in a bounded time, and end the run. Warn about what could not be sent."""
        since = monotonic()
        if self._is_closed:
            self._reopen()
        end = RunEnd(status, self._stamp() if time is None else time)
        if status == "FAILED" and self._outbox.is_held:  # a resumed training failed before it logged anything
            for sender in self._senders:
                sender.end_unlogged = end
        else:
            self._outbox.add(end)
        for sender in self._senders:
            sender.is_killed = status == "KILLED"
        self._finish(since)

    def _log_files(self, path: Path, *, is_folder: bool) -> None:
        since = monotonic()
        try:
            place = resolved(path)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            self._warn(f"{self._names}: '{path}' cannot be sent: {masked(error)}")
            return
        if not (place.is_dir() if is_folder else place.is_file()):
            self._warn(f"{self._names}: there is no {'folder' if is_folder else 'file'} '{place}' to send")
            return
        self._latest += 1  # no two artifacts are equal
        artifact = Artifact(place, is_folder, self._stamp())
        for sender in self._senders:
            sender.expect(artifact)
        self._put(artifact)
        for sender in self._senders if not self._is_closed else ():
            sender.wait_for(artifact, since)

    def _put(self, entry: Entry) -> None:
        since = monotonic()
        if self._is_closed:  # for example `trainer.log_artifact` after `fit`
            self._reopen()
        self._outbox.add(entry)
        self._count += 1
        if self._outbox.trouble is not None:
            text = "what is not sent before the end of the training may be lost"
            self._warn_once("disk", f"{self._names}: the outbox cannot be written ({self._outbox.trouble}): {text}")
        if self._is_closed:
            self._finish(since)
        elif isinstance(entry, Artifact) or self._count % BATCH == 0:
            for sender in self._senders:
                sender.wake()

    def _reopen(self) -> None:
        self._outbox = Outbox(self._model_path)
        for sender in self._senders:
            sender.reopen(self._outbox)

    def _finish(self, since: float) -> None:
        """Wait until all is sent, in a bounded time, and warn about what was not sent."""
        self._is_closed = True
        for sender in self._senders:
            sender.close()
            sender.work()
        for sender in self._senders:
            sender.join(since)
        self._outbox.release()
        for problem in self._outbox.problems:
            self._warn_once(problem, problem)
        for sender in self._senders:
            delivery = sender.delivery()
            if delivery.lost:
                parts = [f"{sender.name}: not sent: {delivery.lost}", delivery.why_lost]
                self._warn("; ".join(filter(None, parts)))
            if delivery.left:
                later = f"later: {self._later[sender.name]}"
                parts = [f"{sender.name}: not sent yet: {delivery.left}", delivery.why_left, later]
                self._warn("; ".join(filter(None, parts)))

    def _stamp(self) -> int:
        """Return the time in milliseconds since 1970; it never decreases."""
        self._latest = max(int(time.time() * 1000), self._latest)
        return self._latest

    def _whole(self, step: Any) -> int | None:
        with suppress(Exception):
            if int(step) == step:
                return int(step)
        self._warn_once("step", f"{self._names}: the step {step!r} is not a whole number: its values are not sent")
        return None

    def _warn_once(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            self._warn(text)

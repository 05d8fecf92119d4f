"""Trackers: where the values of a training are sent to be looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker(Protocol):
    """What the loop and modules ask of a tracker."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send values, as of an optimizer step."""
        ...

    def log_artifact(self, path: Path) -> None:
        """Send a file."""
        ...

    def log_artifacts(self, folder: Path) -> None:
        """Send all files of a folder."""
        ...

    def state(self) -> dict[str, Any]:
        """What a resumed training needs to continue the same run, as JSON."""
        ...

    def close(self, status: Status) -> None:
        """End the run."""
        ...


class GuardedTracker:
    """A tracker whose failures are warnings: what cannot be sent is said once and does not end a training."""

    def __init__(self, tracker: Tracker, warn: Callable[[str], None]) -> None:
        self._tracker, self._warn = tracker, warn
        self._warned = False

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._try(lambda: self._tracker.log(values, step))

    def log_artifact(self, path: Path) -> None:
        self._try(lambda: self._tracker.log_artifact(path))

    def log_artifacts(self, folder: Path) -> None:
        self._try(lambda: self._tracker.log_artifacts(folder))

    def state(self) -> dict[str, Any]:
        return self._tracker.state()

    def close(self, status: Status) -> None:
        self._try(lambda: self._tracker.close(status))

    def _try(self, send: Callable[[], None]) -> None:
        try:
            send()
        except Exception as error:
            if not self._warned:
                self._warned = True
                self._warn(f"the tracker takes no values: {type(error).__name__}: {error}")


class NoTracker:
    """Takes everything and keeps nothing: no tracker was asked for, or this is not the main process."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Do nothing."""

    def log_artifact(self, path: Path) -> None:
        """Do nothing."""

    def log_artifacts(self, folder: Path) -> None:
        """Do nothing."""

    def state(self) -> dict[str, Any]:
        return {}

    def close(self, status: Status) -> None:
        """Do nothing."""

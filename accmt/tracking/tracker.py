"""Trackers: where the values of a training are sent to be looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from accmt.rules.texts import masked

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Unreachable(Exception):
    """A tracker does not answer now; the same call may succeed later."""


class NoArtifacts(Exception):
    """A tracker has no place for files."""


@dataclass(frozen=True, slots=True)
class Resumption:
    """A checkpoint from which a training was continued: what was logged after it is logged again.

    Attributes:
        step: Its step.
        since: The time of what was logged last before it, in milliseconds since 1970.
        at: When the training was continued, in the same unit.
        goes_back: Whether the user chose the checkpoint, so that the values that follow may be others on purpose.
    """

    step: int
    since: int
    at: int
    goes_back: bool = False

    def voids(self, step: int, time: int) -> bool:
        """Whether what was logged as of this step and at this time is logged again, and need not be sent any more."""
        return step > self.step and time > self.since

    def may_repeat(self, step: int, time: int) -> bool:
        """Whether what is logged now may be this, which was sent before."""
        return time <= self.at and (step > self.step or time > self.since)


@dataclass(frozen=True, slots=True)
class Logged:
    """Values of an optimizer step.

    Attributes:
        values: Name -> value.
        step: The step.
        time: When they were logged, in milliseconds since 1970.
        resumption: The last one before them; None in a training that was not continued.
    """

    values: Mapping[str, float]
    step: int
    time: int
    resumption: Resumption | None = None


@dataclass(frozen=True, slots=True)
class Beginning:
    """What trackers are told at the start of a training.

    Attributes:
        location: A folder or an address.
        experiment: The name under which the training is found.
        parameters: Hyperparameters and what else describes the training; may be nested.
        former: Tracker -> its `state()` when the checkpoint was made that is continued from.
        step: The step of that checkpoint, None for a new training.
        goes_back: Whether the user chose that checkpoint by its number.
        folder: The folder of trackers that need one where `location` is an address.
    """

    location: str
    experiment: str
    parameters: Mapping[str, Any]
    former: Mapping[str, Any]
    step: int | None
    goes_back: bool = False
    folder: str = ""


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

    def close(self, status: Status, time: int | None = None) -> None:
        """End the run, as of a time in milliseconds since 1970; None is now."""
        ...


@runtime_checkable
class BatchTracker(Tracker, Protocol):
    """A tracker that takes the values of several steps in one call."""

    def log_batch(self, batch: Sequence[Logged]) -> None:
        """Send values of several steps, all logged after the same resumption or before any."""
        ...


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

    def close(self, status: Status, time: int | None = None) -> None:
        """Do nothing."""


def check_state(state: Mapping[str, Any]) -> None:
    """Find out whether the state of trackers is one that `Tracker.state` gave.

    Raises:
        ValueError: It is not.
    """
    kinds: dict[str, tuple[type, ...]] = {"training": (str,), "until": (int,), "run": (str, dict, type(None))}
    for name, known in state.items():
        if not isinstance(known, Mapping) or {key: type(known[key]) in kinds.get(key, ()) for key in known} != (
            dict.fromkeys(kinds, True)
        ):
            raise ValueError(f"the state of the tracker '{name}' is {known!r:.100}")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values with dotted names: `{"optimizer": {"lr": 0.1}}` is `{"optimizer.lr": 0.1}`."""
    pairs: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        pairs |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return pairs


def plain(values: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """The same, of values that every tracker takes: what is no number becomes a text, an address without a password."""
    return {
        name: value if isinstance(value, bool | int | float) else masked(value) for name, value in flat(values).items()
    }

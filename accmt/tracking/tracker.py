"""Trackers: tools that display the values of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from accmt.rules.printable import masked
from accmt.states import Status as Status
from accmt.states import Tracker as Tracker

if TYPE_CHECKING:
    from pydantic import ConfigDict


class Unreachable(Exception):
    """A tracker does not answer now; the same call may succeed later."""


class NoArtifacts(Exception):
    """A tracker cannot store files."""


@dataclass(frozen=True, slots=True)
class Resumption:
    """Resumption of a training from a checkpoint: values logged after the checkpoint are logged again.

    Attributes:
        step: The step of the checkpoint.
        since: The time of the last entry before the checkpoint, in milliseconds since 1970.
        at: When the training was resumed, in the same unit.
        goes_back: Whether the user chose the checkpoint, so that later values may differ on purpose.
    """

    step: int
    since: int
    at: int
    goes_back: bool = False

    def voids(self, step: int, time: int) -> bool:
        """Return whether an entry of this step and time is logged again, and so need not be sent."""
        return step > self.step and time > self.since

    def may_repeat(self, step: int, time: int) -> bool:
        """Return whether an entry logged now may repeat one of this step and time that was sent before."""
        return time <= self.at and (step > self.step or time > self.since)


@dataclass(frozen=True, slots=True)
class Logged:
    """Values of an optimizer step.

    Attributes:
        values: Name -> value.
        step: The step.
        time: When they were logged, in milliseconds since 1970.
        resumption: The last one before them; None in a training that was not resumed.
    """

    values: Mapping[str, float]
    step: int
    time: int
    resumption: Resumption | None = None


@dataclass(frozen=True, slots=True)
class FormerRun:
    """State of a tracker in a checkpoint.

    Attributes:
        training: Unique id of the training.
        until: The time of the last value before the checkpoint, in milliseconds since 1970.
        run: What the tracker needs to resume the run; None if it had not begun.
    """

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}

    training: str
    until: int
    run: str | dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Beginning:
    """Facts for the trackers at the start of a training.

    Attributes:
        location: A folder or an address.
        experiment: The name of the experiment.
        parameters: Hyperparameters and other facts of the training; may be nested.
        former: Tracker -> its `state()` in the checkpoint from which the training resumes.
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


@runtime_checkable
class BatchTracker(Tracker, Protocol):
    """Tracker that accepts the values of several steps in one call."""

    def log_batch(self, batch: Sequence[Logged]) -> None:
        """Send values of several steps, all after the same resumption or all before the first one."""
        ...


class NoTracker:
    """No-op tracker, if none was requested or this is not the main process."""

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


@cache
def adapter(kind: Any) -> Any:
    """Return what checks values of a type; pydantic is imported only here, because it takes as long as all of rich."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def check_state(state: Mapping[str, Any]) -> None:
    """Check that a state of trackers is one that `Tracker.state` returned.

    Raises:
        ValueError: It is not.
    """
    for name, known in state.items():
        try:
            adapter(FormerRun).validate_python(known)
        except ValueError:  # pydantic's is one
            raise ValueError(f"the state of the tracker '{name}' is {known!r:.100}") from None


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested values to dotted names: `{"optimizer": {"lr": 0.1}}` is `{"optimizer.lr": 0.1}`."""
    pairs: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        pairs |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return pairs


def plain_parameters(values: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Flatten like `flat`, to values that every tracker accepts: numbers and text, addresses without passwords."""
    return {
        name: value if isinstance(value, bool | int | float) else masked(value) for name, value in flat(values).items()
    }

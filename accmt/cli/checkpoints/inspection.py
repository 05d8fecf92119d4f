"""Inspection of the folder of a checkpoint or saved model: its description, and whether it can be trusted.

A training may be running at the same time: what it removes during the inspection is left out, and what it replaces is
inspected again.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from accmt.checkpoint import publish
from accmt.checkpoint.checkpoints import SCHEMA, Checkpoint
from accmt.checkpoint.saved_models import DESCRIPTION
from accmt.files.json_io import read_json
from accmt.rules.codec import from_text

TRAINER = "trainer.json"
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)

_TRIES = 5
_LARGEST = 10**15

_T = TypeVar("_T")


class State(StrEnum):
    """State of a published folder. `complete`: its files have the right names, kinds and sizes."""

    COMPLETE = "complete"
    VERIFIED = "verified"
    DAMAGED = "damaged"
    UNREADABLE = "unreadable"
    TOO_NEW = "too new"
    MISSING = "missing"
    UNLISTED = "not listed"


@dataclass(frozen=True, slots=True)
class Look:
    """Options of an inspection: whether to read every byte, and a function called before each folder with its name."""

    verify: bool
    tell: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Seen:
    """A published folder: its size, when it was written (seconds since 1970), its state, and what is wrong with it."""

    path: Path
    size: int
    written: float | None
    state: State
    problem: str | None = None

    @property
    def is_bad(self) -> bool:
        return self.problem is not None


@dataclass(frozen=True, slots=True)
class Epoch:
    """Completed epochs, the steps done in the next one, and its length; None if unknown."""

    completed: int
    steps: int
    length: int | None


@dataclass(frozen=True, slots=True)
class SeenCheckpoint:
    """A checkpoint. A resume uses the newest that `is_whole`, though reading it may still fail."""

    seen: Seen
    index: int
    step: int
    epoch: Epoch | None
    is_whole: bool


@dataclass(frozen=True, slots=True)
class About:
    """Description of a saved model, from its own files."""

    rule: str
    text: str
    values: Mapping[str, float]
    step: int
    epoch: int
    evaluation: int


@dataclass(frozen=True, slots=True)
class SeenModel:
    """A saved model; `about` is None if its description cannot be read."""

    seen: Seen
    about: About | None


def see_checkpoint(checkpoint: Checkpoint, look: Look) -> SeenCheckpoint | None:
    """Inspect a checkpoint; None if it no longer exists."""

    def see() -> SeenCheckpoint:
        look.tell(checkpoint.path.name)
        seen = _seen(checkpoint.path, look)
        epoch, problem, state = None, None, State.DAMAGED
        try:
            data = read(checkpoint.path / TRAINER)
            epoch = _epoch(data)
            if _whole(data["schema"]) > SCHEMA:
                state = State.TOO_NEW
                problem = f"a newer accmt wrote it (schema {data['schema']}): update accmt to continue from it"
        except UNREADABLE as error:
            problem = f"its {TRAINER} cannot be read: {type(error).__name__}"
        is_whole = seen.problem is None
        if is_whole and problem is not None:
            seen = replace(seen, state=state, problem=problem)
        return SeenCheckpoint(_allowed(seen), checkpoint.index, checkpoint.step, epoch, is_whole)

    return steadily(lambda: identity(checkpoint.path), see)


def see_model(place: Path, look: Look) -> SeenModel | None:
    """Inspect a saved model; None if it does not exist."""

    def see() -> SeenModel:
        look.tell(place.name)
        seen, about = _seen(place, look), None
        try:
            about = _about(read(place / DESCRIPTION))
        except UNREADABLE as error:
            if seen.problem is None:
                problem = f"its {DESCRIPTION} cannot be read: {type(error).__name__}"
                seen = replace(seen, state=State.DAMAGED, problem=problem)
        return SeenModel(_allowed(seen), about)

    return steadily(lambda: identity(place), see)


def steadily(identified: Callable[[], object], see: Callable[[], _T]) -> _T | None:
    """Inspect something until it does not change in between; None if it does not exist or is removed."""
    seen, now = None, identified()
    for _ in range(_TRIES):
        if now is None:
            return None
        before, seen = now, see()
        now = identified()
        if now == before:
            break
    return seen


def identity(path: Path) -> tuple[int, ...] | None:
    """Return a value that changes when a file or folder is replaced or written; None if it does not exist."""
    try:
        info = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return (error.errno or 0,)
    return info.st_dev, info.st_ino, info.st_mtime_ns


def size_of(path: Path) -> int:
    """Return the size in bytes of a file, or of all files below a folder; unreadable ones count as 0."""
    total, waiting = 0, [os.fspath(path)]
    while waiting:
        place = waiting.pop()
        try:
            info = os.lstat(place)
            if stat.S_ISDIR(info.st_mode):
                waiting += [entry.path for entry in os.scandir(place)]
            elif stat.S_ISREG(info.st_mode):
                total += info.st_size
        except OSError:
            continue
    return total


def read(path: Path) -> Any:
    """Read strict JSON from a regular file: reading from a pipe could block forever.

    Raises:
        OSError, ValueError, RecursionError: If it cannot be read.
    """
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise ValueError(f"{path.name} is not a regular file")
    return read_json(path)


def _seen(path: Path, look: Look) -> Seen:
    try:
        problem = publish.problem_of(path, read=look.verify)
    except UNREADABLE as error:
        problem = f"it cannot be read: {error.strerror if isinstance(error, OSError) else type(error).__name__}"
    good = State.VERIFIED if look.verify else State.COMPLETE
    return Seen(path, size_of(path), _written(path), good if problem is None else State.DAMAGED, problem)


def _allowed(seen: Seen) -> Seen:
    """Replace the problem by "unreadable" if the user may not read the folder, as nothing more is known then."""
    if seen.problem is None:
        return seen
    ids = os.access in os.supports_effective_ids
    try:
        files = [entry.path for entry in os.scandir(seen.path) if entry.is_file(follow_symlinks=False)]
        is_open = os.access(seen.path, os.R_OK | os.X_OK, effective_ids=ids)
        is_open = is_open and all(os.access(path, os.R_OK, effective_ids=ids) for path in files)
    except PermissionError:
        is_open = False
    except OSError:
        return seen
    return seen if is_open else replace(seen, state=State.UNREADABLE, problem="you may not read all of it")


def _written(path: Path) -> float | None:
    """Return when a folder was published: its manifest is written last."""
    for place in (path / publish.MANIFEST, path):
        try:
            return os.lstat(place).st_mtime
        except OSError:
            continue
    return None


def _epoch(data: Mapping[str, Any]) -> Epoch:
    position, length = data["position"], data["steps_per_epoch"]
    completed, steps = _whole(position["epoch"]), _whole(position["step_in_epoch"])
    return Epoch(completed, steps, None if length is None else _whole(length))


def _about(data: Mapping[str, Any]) -> About:
    values = {str(name): from_text(value) for name, value in data["values"].items()}
    step, epoch, evaluation = (_whole(data[name]) for name in ("step", "epoch", "evaluation"))
    return About(str(data["rule"]), str(data["text"]), values, step, epoch, evaluation)


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST:
        raise ValueError(f"{value!r} is not a count")
    return value

"""The start of the trackers of a training, on its main process."""

from __future__ import annotations

import json
import shlex
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accmt.config.errors import ConfigError, Problem
from accmt.files.paths import shortened
from accmt.rules.printable import masked
from accmt.tracking import accelerate, mlflow
from accmt.tracking.background import BackgroundTracker, MultiTracker
from accmt.tracking.mlflow import NAME as MLFLOW
from accmt.tracking.outbox import Outbox, waiting_in
from accmt.tracking.segment import Recipient
from accmt.tracking.tracker import Beginning, NoTracker, Resumption, Tracker, plain
from accmt.tracking.trust import names_of, problem_of_artifact


@dataclass(frozen=True, slots=True)
class Former:
    """State of a tracker in a checkpoint, see `BackgroundTracker.state`."""

    training: str
    until: int
    run: Any


def start_trackers(
    trackers: Mapping[str, Mapping[str, Any]], beginning: Beginning, model_path: Path, warn: Callable[[str], None]
) -> Tracker:
    """Begin a run in every tracker, or resume the former one, including entries that still wait for it.

    Args:
        trackers: Tracker -> the arguments of its run.
        beginning: The facts for the trackers.
        model_path: The folder of the training, for their outboxes.
        warn: Receives a warning.

    Raises:
        ConfigError: A tracker rejects a new training. A resumed training continues without that tracker.
    """
    started: list[BackgroundTracker] = []
    command = f"accmt sync {shlex.quote(str(shortened(model_path)))}"
    waiting, problems = waiting_in(model_path)
    outboxes = {name: _outbox(name, arguments, beginning, model_path) for name, arguments in trackers.items()}
    own = {outbox.recipient.identity for outbox in outboxes.values()}
    for (name, _, _), left in {identity: left for identity, left in waiting.items() if identity not in own}.items():
        if left.values or left.files:
            warn(f"{name}: {left} of an earlier run still wait to be sent; when this training is over: {command}")
    for problem in problems:
        warn(problem)
    for name, outbox in outboxes.items():
        make = _maker(outbox, trackers[name], beginning.step)
        places = (f" --to {shlex.quote(place)}" for place in names_of(name, outbox.recipient.location))
        refuse = partial(problem_of_artifact, model_path, ())
        tracker = BackgroundTracker(name, make, warn, outbox, later=command + "".join(places), refuse=refuse)
        try:
            tracker.start(may_be_late=name == MLFLOW and mlflow.is_address(beginning.location))
        except Exception as error:
            problem = f"{name} cannot be used: {type(error).__name__}: {masked(error)}"
            if beginning.step is None:
                for other in started:
                    other.close("FAILED")
                hides = masked(outbox.recipient.location) != outbox.recipient.location  # the error may reveal it
                raise ConfigError([Problem("log_with", problem)], "fit(...)") from (None if hides else error)
            warn(f"{problem}; the training goes on without it")
        started.append(tracker)
    return MultiTracker(started) if len(started) > 1 else started[0] if started else NoTracker()


def _outbox(name: str, arguments: Mapping[str, Any], beginning: Beginning, model_path: Path) -> Outbox:
    """Open the outbox of a new or resumed training."""
    now = int(time.time() * 1000)
    known = beginning.former.get(name)
    former = Former(uuid.uuid4().hex, now, None) if known is None else Former(**known)
    resumption = None
    if known is not None and beginning.step is not None:
        resumption = Resumption(beginning.step, former.until, max(now, former.until), beginning.goes_back)
    location = _location(name, beginning)
    recipient = Recipient(
        *(name, former.training, location, beginning.experiment, plain(beginning.parameters)),
        arguments=_written(name, arguments),
        began=now,
    )
    outbox = Outbox(model_path, recipient, resumption)
    outbox.run = former.run if outbox.run is None else outbox.run
    return outbox


def _location(name: str, beginning: Beginning) -> str:
    location = beginning.location
    if mlflow.is_address(location):
        address = location if "://" in location or "@" not in location else f"http://{location}"
        return address if name == MLFLOW else beginning.folder
    return str(Path(location).absolute())


def _written(name: str, arguments: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Convert the arguments of a run to JSON; None if they cannot be serialized."""
    try:
        written: dict[str, Any] = json.loads(json.dumps(arguments, default=str if name == MLFLOW else None))
    except (TypeError, ValueError):
        return None
    return written


def _maker(outbox: Outbox, arguments: Mapping[str, Any], step: int | None) -> Callable[[], Tracker]:
    recipient, run = outbox.recipient, outbox.run
    if recipient.tracker == MLFLOW:
        mlflow.load()
        return partial(mlflow.tracker_for, recipient, arguments, run)
    return partial(accelerate.tracker_for, recipient, arguments, run, step)

"""The start of the trackers of a training, on its main process."""

from __future__ import annotations

import json
import shlex
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from accmt.config.errors import ConfigError, Problem
from accmt.files.paths import shortened
from accmt.rules.printable import masked
from accmt.tracking import accelerate_trackers, background, mlflow
from accmt.tracking.background import BackgroundTrackers
from accmt.tracking.mlflow import NAME as MLFLOW
from accmt.tracking.outbox import Outbox, OutboxReader
from accmt.tracking.records import Recipient, SentPosition
from accmt.tracking.sending import Sender
from accmt.tracking.tracker import Beginning, FormerRun, NoTracker, Resumption, Tracker, plain_parameters
from accmt.tracking.trust import names_of, problem_of_artifact


def start_trackers(
    trackers: Mapping[str, Mapping[str, Any]], beginning: Beginning, model_path: Path, warn: Callable[[str], None]
) -> Tracker:
    """Begin a run in every tracker, or resume the former one, including entries that still wait for it.

    Args:
        trackers: Tracker -> the arguments of its run.
        beginning: The facts for the trackers.
        model_path: The folder of the training, for their outbox.
        warn: Receives a warning.

    Raises:
        ConfigError: A tracker rejects a new training. A resumed training continues without that tracker.
    """
    outbox = Outbox(model_path)
    readers = {name: _reader(outbox, name, arguments, beginning) for name, arguments in trackers.items()}
    command = f"accmt sync {shlex.quote(str(shortened(model_path)))}"
    for position, resumption in outbox.stored():
        left = OutboxReader(outbox, position, resumption).waiting()
        if left.values or left.artifacts:
            text = f"{left} of an earlier run still wait to be sent; when this training is over: {command}"
            warn(f"{position.recipient.tracker}: {text}")
    for problem in outbox.problems:
        warn(problem)
    outbox.problems.clear()
    if not trackers:
        outbox.release()
        return NoTracker()
    senders: list[Sender] = []
    later: dict[str, str] = {}
    for name, reader in readers.items():
        make, location = _maker(reader, trackers[name], beginning.step), reader.position.recipient.location
        places = (f" --to {shlex.quote(place)}" for place in names_of(name, location))
        later[name] = command + "".join(places)
        refuse = partial(problem_of_artifact, model_path, ())
        sender = Sender(name, outbox, reader, make, warn, background.LIMITS, refuse)
        error = sender.start(may_be_late=name == MLFLOW and mlflow.is_address(beginning.location))
        if error is not None:
            rejection = f"{name} cannot be used: {type(error).__name__}: {masked(error)}"
            if beginning.step is None:
                outbox.is_held = True  # nothing of this training is sent later
                BackgroundTrackers(model_path, outbox, senders, warn, later).close("FAILED")
                has_password = masked(location) != location
                raise ConfigError([Problem("log_with", rejection)], "fit(...)") from None if has_password else error
            warn(f"{rejection}; the training continues without it")
        senders.append(sender)
    return BackgroundTrackers(model_path, outbox, senders, warn, later)


def _reader(outbox: Outbox, name: str, arguments: Mapping[str, Any], beginning: Beginning) -> OutboxReader:
    """Begin to write for the tracker of a new or resumed training."""
    now = int(time.time() * 1000)
    known = beginning.former.get(name)
    former = FormerRun(uuid.uuid4().hex, now, None) if known is None else FormerRun(**known)
    resumption = None
    if known is not None and beginning.step is not None:
        resumption = Resumption(beginning.step, former.until, max(now, former.until), beginning.goes_back)
    parameters, location = plain_parameters(beginning.parameters), _location(name, beginning)
    facts = (name, former.training, location, beginning.experiment, parameters)
    recipient = Recipient(*facts, arguments=_as_json(name, arguments), began=now)
    return outbox.read_by(SentPosition(recipient, run=former.run), resumption)


def _location(name: str, beginning: Beginning) -> str:
    location = beginning.location
    if mlflow.is_address(location):
        address = location if "://" in location or "@" not in location else f"http://{location}"
        return address if name == MLFLOW else beginning.folder
    return str(Path(location).absolute())


def _as_json(name: str, arguments: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Convert the arguments of a run to JSON; None if they cannot be serialized."""
    try:
        return dict(json.loads(json.dumps(arguments, default=str if name == MLFLOW else None)))
    except (TypeError, ValueError):
        return None


def _maker(reader: OutboxReader, arguments: Mapping[str, Any], step: int | None) -> Callable[[], Tracker]:
    recipient, run = reader.position.recipient, reader.position.run
    if recipient.tracker == MLFLOW:
        mlflow.load()
        return partial(mlflow.mlflow_tracker_for, recipient, arguments, run)
    return partial(accelerate_trackers.accelerate_tracker_for, recipient, arguments, run, step)

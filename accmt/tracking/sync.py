"""Sending of what waits in the outbox of a training that is over; the lock of its folder must be held.

Does not import torch, unless entries wait for another tracker than MLflow.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from accmt.rules.printable import masked
from accmt.tracking import mlflow
from accmt.tracking.outbox import Outbox, OutboxReader
from accmt.tracking.records import Artifact, EntryCount, Recipient, RunEnd, SentPosition
from accmt.tracking.sending import Delivery, Sender, SendingLimits
from accmt.tracking.tracker import Tracker
from accmt.tracking.trust import ENVIRONMENT, Allowed, destination_of, names_of, problem_of_artifact


@dataclass(frozen=True, slots=True)
class SyncResult:
    """Result of sending what waited for a tracker, and the place of the tracker, without password."""

    tracker: str
    place: str
    delivery: Delivery


def send_waiting(model_path: Path, seconds: float, allowed: Allowed | None = None) -> Iterator[SyncResult | str]:
    """Send the entries that wait for each tracker, one tracker after the other.

    A run whose end was never logged belongs to a killed training, and is ended with that status.

    Args:
        model_path: The folder of the training.
        seconds: Time limit for all of them together. Unsent entries keep waiting.
        allowed: Destinations, and artifacts outside the folder, that may be used.

    Yields:
        The result for each tracker; or, as text, the problem of a damaged file, or why nothing is sent to a tracker.
    """
    allowed = allowed or Allowed()
    deadline = time.monotonic() + seconds
    found = Outbox(model_path)
    yield from found.problems
    stored = found.stored()
    found.release()
    for position, resumption in stored:
        outbox = Outbox(model_path)
        left = OutboxReader(outbox, position, resumption).waiting()
        if not left and position.ended:
            outbox.release()
            continue
        destination = destination_of(position.recipient, allowed)
        if destination is None:
            outbox.release()
            yield _not_named(position, left)
            continue
        reader = outbox.read_by(position, resumption)
        recipient = reader.position.recipient
        if not position.ended and left.status is None:
            outbox.add(RunEnd("KILLED", reader.modified or recipient.began))
        limits = SendingLimits(end=max(0.0, deadline - time.monotonic()))
        make = partial(_make, replace(recipient, location=destination), position.run)
        warn, refuse = lambda warning: None, partial(_refused, model_path, allowed)  # the delivery says it
        sender = Sender(recipient.tracker, outbox, reader, make, warn, limits, refuse)
        sender.close()
        sender.work()
        sender.join(time.monotonic())
        outbox.release()
        yield SyncResult(recipient.tracker, masked(recipient.location), sender.delivery())


def _not_named(position: SentPosition, left: EntryCount) -> str:
    """Explain how to name the destination of what waits."""
    recipient = position.recipient
    options = " ".join(f"--to {shlex.quote(name)}" for name in names_of(recipient.tracker, recipient.location))
    nobody = "the command line does not name"
    if recipient.tracker == mlflow.NAME:
        nobody = f"neither the command line nor {ENVIRONMENT} names"
    arguments = f"; the arguments of its run: {json.dumps(recipient.arguments)}" if recipient.arguments else ""
    return (
        f"{recipient.tracker} at {masked(recipient.location)}: still waiting: {left or 'nothing'}; it is not sent, as "
        f"{nobody} this place: if it is yours, add {options}{arguments}"
    )


def _refused(model_path: Path, allowed: Allowed, artifact: Artifact) -> str | None:
    problem = problem_of_artifact(model_path, allowed.artifacts, artifact)
    if problem is None:
        return None
    return f"{problem}: to send it, add --artifacts-from {shlex.quote(str(artifact.path))}"


def _make(recipient: Recipient, run: Any) -> Tracker:
    if recipient.tracker == mlflow.NAME:
        return mlflow.mlflow_tracker_for(recipient, recipient.arguments or {}, run)
    others = import_module("accmt.tracking.accelerate_trackers")
    others.refuse_places(recipient)
    made: Tracker = others.accelerate_tracker_for(recipient, recipient.arguments, run, None)
    return made

"""Sending of the outboxes of a training that is over; the lock of its folder must be held.

Does not import torch, unless entries wait for another tracker than MLflow.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path

from accmt.rules.printable import masked
from accmt.tracking import mlflow
from accmt.tracking.background import BackgroundTracker, Limits, Outcome
from accmt.tracking.entries import File
from accmt.tracking.outbox import Outbox, outboxes_in
from accmt.tracking.tracker import Tracker
from accmt.tracking.trust import ENVIRONMENT, Allowed, destination_of, names_of, problem_of_artifact


@dataclass(frozen=True, slots=True)
class Sent:
    """Outcome of an outbox, with its tracker and the place of that, without password."""

    tracker: str
    place: str
    outcome: Outcome


def send_waiting(model_path: Path, seconds: float, allowed: Allowed | None = None) -> Iterator[Sent | str]:
    """Send the entries that wait for each tracker, one tracker after the other.

    A run whose end was never logged belongs to a killed training, and is ended with that status.

    Args:
        model_path: The folder of the training.
        seconds: Time limit for all of them together. Unsent entries keep waiting.
        allowed: Destinations, and artifacts outside the folder, that may be used.

    Yields:
        The outcome of each outbox; or, as text, the problem of a damaged file, or why an outbox is not sent.
    """
    allowed = allowed or Allowed()
    deadline = time.monotonic() + seconds
    outboxes, problems = outboxes_in(model_path)
    yield from problems
    for outbox in outboxes:
        recipient = outbox.recipient
        destination = destination_of(recipient, allowed)
        if destination is None:
            yield _not_named(outbox)
            continue
        outbox.recipient = replace(recipient, location=destination)
        refuse = partial(_refused, model_path, allowed)
        outcome = _send(outbox, max(0.0, deadline - time.monotonic()), refuse)
        yield Sent(recipient.tracker, masked(recipient.location), outcome)


def _not_named(outbox: Outbox) -> str:
    """Release an outbox, and explain how to name its destination."""
    recipient, left = outbox.recipient, outbox.left()
    outbox.release()
    options = " ".join(f"--to {shlex.quote(name)}" for name in names_of(recipient.tracker, recipient.location))
    nobody = "the command line does not name"
    if recipient.tracker == mlflow.NAME:
        nobody = f"neither the command line nor {ENVIRONMENT} names"
    arguments = f"; the arguments of its run: {json.dumps(recipient.arguments)}" if recipient.arguments else ""
    return (
        f"{recipient.tracker} at {masked(recipient.location)}: still waits: {left or 'nothing'}; it is not sent, as "
        f"{nobody} this place: if it is yours, add {options}{arguments}"
    )


def _refused(model_path: Path, allowed: Allowed, file: File) -> str | None:
    problem = problem_of_artifact(model_path, allowed.artifacts, file)
    if problem is None:
        return None
    return f"{problem}: to send it, add --artifacts-from {shlex.quote(str(file.path))}"


def _send(outbox: Outbox, seconds: float, refuse: Callable[[File], str | None]) -> Outcome:
    limits = Limits(interval=0.0, end=seconds, end_with_artifacts=seconds, end_when_killed=seconds)
    tracker = BackgroundTracker(
        *(outbox.recipient.tracker, partial(_make, outbox), _say_nothing, outbox),
        later="",
        limits=limits,
        refuse=refuse,
    )
    tracker.close_soon(None if outbox.ended else "KILLED", outbox.modified)
    tracker.work()
    return tracker.finish()


def _make(outbox: Outbox) -> Tracker:
    recipient, run = outbox.recipient, outbox.run
    if recipient.tracker == mlflow.NAME:
        return mlflow.tracker_for(recipient, recipient.arguments or {}, run)
    others = import_module("accmt.tracking.accelerate")
    others.refuse_places(recipient)
    made: Tracker = others.tracker_for(recipient, recipient.arguments, run, None)
    return made


def _say_nothing(warning: str) -> None:
    """Ignore a warning, as the outcome contains it."""

"""Sending what waits in the outboxes of a training that is over; the lock of its folder must be held.

It imports no torch, unless something waits for another tracker than MLflow.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

from accmt.tracking import mlflow
from accmt.tracking.background import BackgroundTracker, Limits, Outcome
from accmt.tracking.outbox import Outbox, outboxes_in
from accmt.tracking.tracker import Tracker


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of an outbox: whose it was, and where its tracker is."""

    tracker: str
    place: str
    outcome: Outcome


def send_waiting(model_path: Path, seconds: float) -> Iterator[Sent | str]:
    """Send what waits for each tracker, one after the other.

    A run whose end was never logged is the run of a training that was killed, and is ended as such.

    Args:
        model_path: The folder of the training.
        seconds: For all of them together. What was not sent by then waits on.

    Yields:
        What became of each outbox, and, in words, what is wrong with a file that is none.
    """
    deadline = time.monotonic() + seconds
    outboxes, problems = outboxes_in(model_path)
    yield from problems
    for outbox in outboxes:
        outcome = _send(outbox, max(0.0, deadline - time.monotonic()))
        yield Sent(outbox.recipient.tracker, mlflow.shown(outbox.recipient.location), outcome)


def _send(outbox: Outbox, seconds: float) -> Outcome:
    limits = Limits(interval=0.0, end=seconds, end_with_artifacts=seconds, end_when_killed=seconds)
    tracker = BackgroundTracker(
        outbox.recipient.tracker, partial(_make, outbox), _say_nothing, outbox, later="", limits=limits
    )
    tracker.close_soon(None if outbox.ended else "KILLED", outbox.modified)
    tracker.work()
    return tracker.finish()


def _make(outbox: Outbox) -> Tracker:
    recipient, run = outbox.recipient, outbox.run
    if recipient.tracker == mlflow.NAME:
        return mlflow.tracker_for(recipient, recipient.arguments or {}, run)
    others = import_module("accmt.tracking.accelerate")
    made: Tracker = others.tracker_for(recipient, recipient.arguments, run, None)
    return made


def _say_nothing(warning: str) -> None:
    """The outcome says it all."""

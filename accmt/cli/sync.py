"""`accmt sync`: send what a training could not send to its trackers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from accmt.checkpoint.lock import LOCK, Lock
from accmt.cli.arguments import CommandError
from accmt.cli.output import complain, write
from accmt.rules.printable import plain
from accmt.rules.reserved_names import CHECKPOINTS
from accmt.tracking.journal import DECISIONS, HISTORY
from accmt.tracking.outbox import FOLDER
from accmt.tracking.sync import SyncResult, send_waiting
from accmt.tracking.training_file import TRAINING
from accmt.tracking.trust import Allowed

_OF_A_TRAINING = (FOLDER, LOCK, TRAINING, HISTORY, DECISIONS, CHECKPOINTS)


def run(options: argparse.Namespace) -> int:
    """Send what is waiting, and say what was sent and what was not. The exit status is 1 if anything was not.

    Raises:
        CommandError: If there is no training, or it is still running.
    """
    folder = Path(options.model_path)
    if not folder.is_dir():
        raise CommandError(f"{folder}: there is no such folder")
    if not any((folder / name).exists() for name in _OF_A_TRAINING):
        raise CommandError(f"{folder} holds no training: there is no {HISTORY} and no {FOLDER} in it")
    lock = Lock(folder)
    try:
        warning = lock.acquire()
    except RuntimeError:
        text = f"{folder} is in use: a training sends by itself what waits; when it is over, call this again"
        raise CommandError(text) from None
    except OSError as error:
        raise CommandError(f"{folder} cannot be written: {error.strerror or error}") from None
    try:
        if warning is not None:
            complain(plain(f"warning: {warning}"))
        return _send(folder, options.timeout, Allowed(tuple(options.destinations), tuple(map(Path, options.artifacts))))
    finally:
        lock.release()


def _send(folder: Path, seconds: float, allowed: Allowed) -> int:
    status, waited = 0, False
    for result in send_waiting(folder, seconds, allowed):
        waited = True
        wrong = [result] if isinstance(result, str) else _told(result)
        for line in wrong:
            complain(plain(line))
            status = 1
        sys.stdout.flush()
    if not waited:
        write(f"{folder}: nothing waits to be sent")
    return status


def _told(result: SyncResult) -> list[str]:
    """Print what was sent; return the errors, one line each."""
    delivery, who = result.delivery, f"{result.tracker} at {result.place}"
    if delivery.sent or not (delivery.left or delivery.lost):
        write(plain(f"{who}: sent {delivery.sent or 'nothing: nothing waited'}"))
    wrong = [f"{who}: not sent: {reason}" for reason in delivery.refused]
    wrong += [f"{who}: '{path}' is gone" for path in delivery.lost.artifacts]
    if delivery.lost:
        wrong.append("; ".join(filter(None, [f"{who}: cannot be sent: {delivery.lost}", delivery.why_lost])))
    if delivery.left:
        wrong.append("; ".join(filter(None, [f"{who}: still waits: {delivery.left}", delivery.why_left])))
    return wrong

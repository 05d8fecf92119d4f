"""`accmt sync`: send what a training could not send to its trackers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from accmt.checkpoint.lock import LOCK, Lock
from accmt.cli.arguments import CommandError, path, positive
from accmt.cli.output import complain, write
from accmt.rules.printable import escaped
from accmt.rules.reserved_names import CHECKPOINTS, LOG, RUN
from accmt.tracking.journal import DECISIONS, HISTORY
from accmt.tracking.outbox import FOLDER
from accmt.tracking.sync import SyncResult, send_waiting
from accmt.tracking.training_file import TRAINING
from accmt.tracking.trust import Allowed

_OF_A_TRAINING = (FOLDER, LOCK, TRAINING, RUN, LOG, HISTORY, DECISIONS, CHECKPOINTS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Complete the parser of the command."""
    parser.description = (
        "Send the values, artifacts and final status that a training could not send while it was running. What cannot\n"
        "be sent now is kept for the next call; MLflow gets nothing twice. The exit status is 1 if something was not\n"
        "sent. Data are sent only to places that you name here, and files only from MODEL_PATH unless you name\n"
        "others."
    )
    parser.epilog = """examples:
  accmt sync runs/model --to http://10.0.0.1:5000
  accmt sync runs/model --to logs --artifacts-from plots --timeout 60
"""
    parser.add_argument("model_path", type=path, metavar="MODEL_PATH", help="the model_path of the training")
    parser.add_argument(
        "--to",
        dest="destinations",
        action="append",
        default=[],
        metavar="PLACE",
        help="where data may be sent: the URL or folder that was the logging_dir, and, for trackers other than MLflow "
        "and TensorBoard, also the name of the tracker; may be repeated. MLFLOW_TRACKING_URI names a place too",
    )
    parser.add_argument(
        "--artifacts-from",
        dest="artifacts",
        action="append",
        default=[],
        metavar="PATH",
        help="a file outside of MODEL_PATH, or a folder of files, that may be sent; may be repeated",
    )
    parser.add_argument(
        "--timeout", type=positive, default=600, metavar="SECONDS", help="how long it may take, 600 by default"
    )


def run(options: argparse.Namespace) -> int:
    """Send what is waiting, and print what was sent and what was not. The exit status is 1 if anything was not.

    Raises:
        CommandError: If there is no training, or it is still running.
    """
    folder = Path(options.model_path)
    if folder.is_file():
        raise CommandError(f"{folder} is a file: give the model_path of a training, a folder")
    if not folder.is_dir():
        raise CommandError(f"{folder}: there is no such folder")
    if not any((folder / name).exists() for name in _OF_A_TRAINING):
        raise CommandError(f"{folder} is not the folder of a training: it has neither {HISTORY} nor {FOLDER}")
    lock = Lock(folder)
    try:
        warning = lock.acquire()
    except RuntimeError:
        text = f"{folder} is in use: the running training sends what waits itself; call this again after it has ended"
        raise CommandError(text) from None
    except OSError as error:
        raise CommandError(f"{folder} cannot be written: {error.strerror or error}") from None
    try:
        if warning is not None:
            complain(escaped(f"warning: {warning}"))
        return _send(folder, options.timeout, Allowed(tuple(options.destinations), tuple(map(Path, options.artifacts))))
    finally:
        lock.release()


def _send(folder: Path, seconds: float, allowed: Allowed) -> int:
    status, waited = 0, False
    for result in send_waiting(folder, seconds, allowed):
        waited = True
        wrong = [result] if isinstance(result, str) else _told(result)
        for line in wrong:
            complain(escaped(line))
            status = 1
        sys.stdout.flush()
    if not waited:
        write(f"{folder}: nothing is waiting to be sent")
    return status


def _told(result: SyncResult) -> list[str]:
    """Print what was sent; return the errors, one line each."""
    delivery, who = result.delivery, f"{result.tracker} at {result.place}"
    if delivery.sent or not (delivery.left or delivery.lost):
        write(escaped(f"{who}: sent {delivery.sent or 'nothing: nothing was waiting'}"))
    wrong = [f"{who}: not sent: {reason}" for reason in delivery.refused]
    wrong += [f"{who}: '{path}' no longer exists" for path in delivery.lost.artifacts]
    if delivery.lost:
        wrong.append("; ".join(filter(None, [f"{who}: cannot be sent: {delivery.lost}", delivery.why_lost])))
    if delivery.left:
        wrong.append("; ".join(filter(None, [f"{who}: still waiting: {delivery.left}", delivery.why_left])))
    return wrong

"""Detection of a running training in a folder, without taking its lock even for a moment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from accmt.checkpoint import lock


@dataclass(frozen=True, slots=True)
class AtWork:
    """Answer to whether a training is running: None if that is unknown, and `reason` says why.

    `process` is the training's process id, None if unknown.
    """

    runs: bool | None
    process: int | None = None
    reason: str = ""


def at_work(model_path: Path) -> AtWork:
    """Find out who holds the lock of a `model_path`; nothing is locked or written, and read permission is enough."""
    try:
        holder = lock.holder_of(model_path)
    except OSError as error:
        return AtWork(None, reason=f"{lock.LOCK} cannot be asked: {error.strerror or error}")
    return AtWork(False) if holder is None else AtWork(True, holder.process)

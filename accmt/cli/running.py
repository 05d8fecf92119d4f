"""Whether a training is at work in a folder, found out without taking its lock, even for a moment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from accmt.checkpoint import lock


@dataclass(frozen=True, slots=True)
class AtWork:
    """Whether a training is at work: None where that cannot be told, and `reason` says why.

    `process` is the number of its process, None where that is not known.
    """

    runs: bool | None
    process: int | None = None
    reason: str = ""


def at_work(model_path: Path) -> AtWork:
    """Ask who holds the lock of a `model_path`; nothing is locked or written, and reading rights are enough."""
    try:
        holder = lock.holder_of(model_path)
    except OSError as error:
        return AtWork(None, reason=f"{lock.LOCK} cannot be asked: {error.strerror or error}")
    return AtWork(False) if holder is None else AtWork(True, holder.process)

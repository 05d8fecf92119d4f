"""What happened between the evaluations of a training: losses, learning rates, checkpoints, signals and its ends.

    log.jsonl     {"step": 12, "time": 1764000000.0, "values": {"train_loss": 0.5, "learning_rate": 0.001}}
                  {"step": 20, "time": 1764000009.0, "event": "checkpoint"}

It serves reports only: nothing is decided or restored from it. So a line is not flushed to the disk, and lines of steps
that a resume repeats stay, and are skipped when it is read. Does not import torch."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from accmt.files.foreign import open_regular
from accmt.notices import warn
from accmt.rules.codec import SPARSE, Count, Finite, Jsonable
from accmt.tracking.journal import read_lines

RESUMED, CHECKPOINT = "resumed", "checkpoint"
ENDS = ("FINISHED", "KILLED", "FAILED")


@dataclass(frozen=True, slots=True, eq=False)
class LogLine(Jsonable):
    """Values that were logged after a step, or an event at it (`resumed`, `checkpoint`, a signal, or one of `ENDS`)
    with a text: the checkpoint, or the error. `time` is in seconds since 1970."""

    step: Count
    time: Finite
    values: Mapping[str, float] = field(default_factory=dict, metadata=SPARSE)
    event: str = field(default="", metadata=SPARSE)
    text: str = field(default="", metadata=SPARSE)


class StepLog:
    """Writer of the log; only the main process `writes`. A line that cannot be written is a warning, once."""

    def __init__(self, path: Path, *, writes: bool) -> None:
        self._path, self._writes = path, writes
        self._last: tuple[int, float] | None = None

    def add_values(self, step: int, values: Mapping[str, float], seconds: float | None = None) -> None:
        """Add values, and the mean time of the steps since the last ones; `seconds` is that of all steps so far."""
        if seconds is not None and self._last is not None and step > self._last[0]:
            values = {**values, "seconds_per_step": (seconds - self._last[1]) / (step - self._last[0])}
        self._last = self._last if seconds is None else (step, seconds)
        self._write(LogLine(step, time.time(), values))

    def add_event(self, step: int, event: str, text: str = "") -> None:
        """Add an event."""
        self._write(LogLine(step, time.time(), {}, event, text))

    def begin(self, resumed_at: int | None = None, text: str = "") -> None:
        """Begin the log of a training; or of a resumed one, which may follow a line that was cut off."""
        if resumed_at is not None:
            self._write(LogLine(resumed_at, time.time(), {}, RESUMED, text), before="\n")
        elif self._writes:
            self._path.unlink(missing_ok=True)

    def _write(self, line: LogLine, before: str = "") -> None:
        if not self._writes:
            return
        try:
            with os.fdopen(open_regular(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "wb") as file:
                file.write(f"{before}{json.dumps(line.to_json(), allow_nan=False)}\n".encode())
        except OSError as error:
            self._writes = False
            warn(f"{self._path} is not written any more ({error.strerror}): reports will lack what follows")


def read_log(path: Path) -> tuple[LogLine, ...]:
    """Read the lines of a log, without damaged ones, and without values of steps that a resume repeated."""
    lines: list[LogLine] = []
    for text in read_lines(path) if path.is_file() else ():
        with suppress(ValueError, RecursionError):
            line = LogLine.from_json(json.loads(text))
            if line.event == RESUMED:
                lines = [one for one in lines if one.step <= line.step or one.event]
            lines.append(line)
    return tuple(lines)

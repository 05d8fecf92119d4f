"""Entries on their way to a tracker, and their format on the disk: one line of JSON each."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from accmt.rules.codec import from_text, to_text
from accmt.tracking.tracker import Logged, Resumption, Status


@dataclass(frozen=True, slots=True)
class File:
    """File, or folder of files, to be sent; `time` in milliseconds since 1970."""

    path: Path
    is_folder: bool
    time: int


@dataclass(frozen=True, slots=True)
class Ended:
    """End of a run; `time` in milliseconds since 1970."""

    status: Status
    time: int


Entry = Logged | File | Ended


def to_line(entry: Entry) -> bytes:
    """Serialize an entry to a line, without the resumption of values: it belongs to the whole file."""
    data: dict[str, Any]
    if isinstance(entry, Logged):
        values = {name: to_text(value) for name, value in entry.values.items()}
        data = {"time": entry.time, "step": entry.step, "values": values}
    elif isinstance(entry, File):
        data = {"time": entry.time, "folder" if entry.is_folder else "file": str(entry.path)}
    else:
        data = {"time": entry.time, "status": entry.status}
    return json.dumps(data, allow_nan=False).encode() + b"\n"


def from_data(data: Any, resumption: Resumption | None) -> Entry | None:
    """Parse the entry of a line; None for another kind of line.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: The line is malformed.
    """
    if "values" in data:
        values = {str(name): from_text(value) for name, value in data["values"].items()}
        return Logged(values, _whole(data["step"]), _whole(data["time"]), resumption)
    if "status" in data:
        if data["status"] not in get_args(Status):
            raise ValueError(f"{data['status']!r} is no status")
        return Ended(data["status"], _whole(data["time"]))
    if "file" in data or "folder" in data:
        is_folder = "folder" in data
        return File(Path(data["folder" if is_folder else "file"]), is_folder, _whole(data["time"]))
    return None


def _whole(number: Any) -> int:
    if not isinstance(number, int):
        raise TypeError(f"{number!r} is no whole number")
    return number


@dataclass(slots=True)
class Count:
    """Number of sent or unsent entries: values and the range of their steps, artifacts, the final status."""

    values: int = 0
    first: float = math.inf
    last: float = -math.inf
    files: list[Path] = field(default_factory=list)
    status: Status | None = None
    unreadable: int = 0

    def add(self, entry: Entry) -> None:
        """Count an entry."""
        if isinstance(entry, File):
            self.files.append(entry.path)
        elif isinstance(entry, Ended):
            self.status = entry.status
        else:
            self.values += len(entry.values)
            self.first, self.last = min(self.first, entry.step), max(self.last, entry.step)

    def __bool__(self) -> bool:
        return bool(self.values or self.files or self.status or self.unreadable)

    def __str__(self) -> str:
        parts = []
        if self.values:
            steps = f"step {self.first}" if self.first == self.last else f"steps {self.first} to {self.last}"
            parts.append(f"{self.values:,} value{'s' * (self.values != 1)} ({steps})")
        if self.files:
            parts.append(f"{len(self.files)} artifact{'s' * (len(self.files) != 1)}")
        if self.status is not None:
            parts.append(f"the status {self.status}")
        if self.unreadable:
            parts.append(f"{self.unreadable} damaged line{'s' * (self.unreadable != 1)}")
        return ", ".join(parts)


def merged(entries: list[Logged]) -> list[tuple[Logged, int]]:
    """Merge consecutive entries of a step that share no name; pair each result with its number of entries."""
    result: list[tuple[Logged, int]] = []
    for entry in entries:
        last, count = result[-1] if result else (None, 0)
        if last is not None and last.step == entry.step and last.values.keys().isdisjoint(entry.values):
            values = {**last.values, **entry.values}
            result[-1] = Logged(values, last.step, entry.time, entry.resumption), count + 1
        else:
            result.append((entry, 1))
    return result

"""Records of an outbox: entries on their way to trackers, recipients, and how far each was sent; as JSON."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accmt.rules.codec import to_text
from accmt.rules.errors import numbered
from accmt.rules.printable import masked
from accmt.tracking.tracker import Logged, Resumption, Status, adapter

SCHEMA = 2


@dataclass(frozen=True, slots=True)
class Artifact:
    """File, or folder of files, to be sent; `time` in milliseconds since 1970."""

    path: Path
    is_folder: bool
    time: int


@dataclass(frozen=True, slots=True)
class RunEnd:
    """End of a run; `time` in milliseconds since 1970."""

    status: Status
    time: int


Entry = Logged | Artifact | RunEnd


@dataclass(frozen=True, slots=True)
class Recipient:
    """Recipient of an outbox: everything needed to begin the run later.

    Attributes:
        tracker: The name of the tracker.
        training: Unique id of the training.
        location: An absolute folder, or an address; on the disk without user and password.
        experiment: The name of the experiment.
        parameters: Parameters of the run with dotted names, as JSON.
        arguments: Arguments of the run, as JSON; None if they cannot be serialized.
        began: When the training began, in milliseconds since 1970.
    """

    tracker: str
    training: str
    location: str
    experiment: str
    parameters: Mapping[str, Any]
    arguments: Mapping[str, Any] | None
    began: int

    @property
    def name(self) -> str:
        """Name of its files, different for each tracker, training and place."""
        identity = json.dumps([self.tracker, self.training, masked(self.location)])
        letters = "".join(c for c in self.tracker if c.isascii() and (c.isalnum() or c == "_"))
        return f"{letters[:40]}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class SentPosition:
    """How much of the journal a recipient was sent.

    Attributes:
        recipient: The recipient.
        part, offset: Everything before this byte of this part of the journal was sent.
        run: What the tracker needs to resume the run; None if it has not begun.
        ended: Whether the end of the run was sent.
    """

    recipient: Recipient
    part: int = 0
    offset: int = 0
    run: str | dict[str, Any] | None = None
    ended: bool = False


@dataclass(frozen=True, slots=True)
class PartHeader:
    """First line of a part of the journal.

    Attributes:
        outbox: The version of the format.
        recipients: Name of each recipient of the part -> the last resumption of its training; None if it has none.
    """

    outbox: int
    recipients: dict[str, Resumption | None]


def position_line(position: SentPosition, recipient: bytes) -> bytes:
    """Serialize a position; the line of its recipient is given, as it is the larger part and stays the same."""
    rest = {"part": position.part, "offset": position.offset, "run": position.run, "ended": position.ended}
    return b'{"recipient": ' + recipient.rstrip() + b", " + masked(json.dumps(rest)).encode()[1:] + b"\n"


def to_line(record: Entry | Recipient | PartHeader) -> bytes:
    """Serialize to one line of JSON, without passwords."""
    if isinstance(record, Logged):  # the resumption is that of the whole part
        values = {name: to_text(value) for name, value in record.values.items()}
        return json.dumps({"values": values, "step": record.step, "time": record.time}).encode() + b"\n"
    text = json.dumps(asdict(record), default=str)
    return (text if isinstance(record, Artifact) else masked(text)).encode() + b"\n"


def parsed_as(kind: Any, text: bytes) -> Any:
    """Parse a line of the journal, or the file of a recipient, as a type.

    Raises:
        ValueError: It is malformed; the message says what is wrong.
    """
    from pydantic import ValidationError

    try:
        return adapter(kind).validate_python(json.loads(text))
    except ValidationError as error:
        wrong = error.errors()[0]
        place = ".".join(map(str, wrong["loc"]))
        raise ValueError(f"its {place} is {wrong['input']!r:.100}" if place else wrong["msg"]) from None
    except (RecursionError, OverflowError) as error:
        raise ValueError(f"{error}") from None


@dataclass(slots=True)
class EntryCount:
    """Number of sent or unsent entries: values and the range of their steps, artifacts, the final status."""

    values: int = 0
    first: float = math.inf
    last: float = -math.inf
    artifacts: list[Path] = field(default_factory=list)
    status: Status | None = None
    unreadable: int = 0

    def add(self, entry: Entry) -> None:
        """Count an entry."""
        if isinstance(entry, Artifact):
            self.artifacts.append(entry.path)
        elif isinstance(entry, RunEnd):
            self.status = entry.status
        else:
            self.values += len(entry.values)
            self.first, self.last = min(self.first, entry.step), max(self.last, entry.step)

    def __bool__(self) -> bool:
        return bool(self.values or self.artifacts or self.status or self.unreadable)

    def __str__(self) -> str:
        parts = []
        if self.values:
            steps = f"step {self.first}" if self.first == self.last else f"steps {self.first} to {self.last}"
            parts.append(f"{numbered(self.values, 'value', ',')} ({steps})")
        if self.artifacts:
            parts.append(numbered(len(self.artifacts), "artifact", ","))
        if self.status is not None:
            parts.append(f"the status {self.status}")
        if self.unreadable:
            parts.append(numbered(self.unreadable, "damaged line", ","))
        return ", ".join(parts)

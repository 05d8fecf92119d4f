"""Records of a training: its journals on the disk, its decisions in memory, and what it has reported already."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from accmt.display.notebook import Decisions
from accmt.rules import Decision, Observation
from accmt.rules.codec import Count, Jsonable, from_plain
from accmt.tracking.journal import DECISIONS, HISTORY, Journal, read_lines

_T = TypeVar("_T", bound=Jsonable)


@dataclass(frozen=True, slots=True)
class _State:
    nan_reported: list[str]
    history: Count
    decisions: Count


class Records:
    """Records of a training.

    Args:
        model_path: The folder of the journals.
        writes: This process writes them; the others only count lines.

    Attributes:
        history: The journal of evaluations.
        decision_log: The journal of decisions.
        observations: All evaluations.
        decisions: All decisions.
        reported: Rules and values that a warning was given about, once.
        failed_savings: Rules whose last model could not be written.
    """

    def __init__(self, model_path: Path, *, writes: bool) -> None:
        self.history = Journal(model_path / HISTORY, writes=writes)
        self.decision_log = Journal(model_path / DECISIONS, writes=writes)
        self.observations: list[Observation] = []
        self.decisions = Decisions()
        self.reported: set[str] = set()
        self.failed_savings: set[str] = set()

    def is_new(self, name: str) -> bool:
        """Mark something as reported, and return whether it was not."""
        is_new = name not in self.reported
        self.reported.add(name)
        return is_new

    def flush(self) -> None:
        """Write the lines that could not be written before.

        Raises:
            OSError: They still cannot be written.
        """
        self.history.flush()
        self.decision_log.flush()

    def state_dict(self) -> dict[str, Any]:
        """Return the numbers of lines, all of which are on the disk then, and what was reported.

        Raises:
            OSError: A line cannot be written.
        """
        self.flush()
        lines = {"history": self.history.lines, "decisions": self.decision_log.lines}
        return {"nan_reported": sorted(self.reported), **lines}

    def check(self, state: Any) -> None:
        """Check that it is a state of records."""
        from_plain(_State, state)

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Cut the journals to the lines that they had, and return which of these are lost, one line each."""
        self.reported = set(state["nan_reported"])
        self.history.cut(state["history"])
        self.decision_log.cut(state["decisions"])
        self.observations[:] = _read(self.history, Observation)
        self.decisions[:] = _read(self.decision_log, Decision)
        notes: list[str] = []
        if self.history.lines < state["history"]:
            text = f"the history has {self.history.lines} of {state['history']} evaluations left: the rest is lost"
            notes.append(text)
        if len(self.decisions) < state["decisions"]:
            text = f"{len(self.decisions)} of {state['decisions']} decisions can be read: the rest is lost"
            notes.append(text)
        return notes


def _read(written: Journal, kind: type[_T]) -> list[_T]:
    """Read the entries of a journal, skipping lines damaged since: nothing is decided from their content."""
    entries: list[_T] = []
    # Another process may be truncating the file at this moment, so count the lines here as well.
    for line in (read_lines(written.path) if written.path.is_file() else [])[: written.lines]:
        with suppress(ValueError, RecursionError):
            entries.append(kind.from_json(json.loads(line)))
    return entries

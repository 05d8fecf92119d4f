"""Records of a training: its journals on the disk, its decisions in memory, and what it has reported already."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accmt.rules import Decision
from accmt.rules.codec import Count, from_plain
from accmt.tracking import journal
from accmt.tracking.journal import DECISIONS, HISTORY, Journal


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
        decisions: All decisions.
        reported: Rules and values that a warning was given about, once.
        failed_savings: Rules whose last model could not be written.
    """

    def __init__(self, model_path: Path, *, writes: bool) -> None:
        self.history = Journal(model_path / HISTORY, writes=writes)
        self.decision_log = Journal(model_path / DECISIONS, writes=writes)
        self.decisions: list[Decision] = []
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
        self.decisions[:] = self._read_decisions()
        notes: list[str] = []
        if self.history.lines < state["history"]:
            text = f"the history has {self.history.lines} of {state['history']} evaluations left: the rest is lost"
            notes.append(text)
        if len(self.decisions) < state["decisions"]:
            text = f"{len(self.decisions)} of {state['decisions']} decisions can be read: the rest is lost"
            notes.append(text)
        return notes

    def _read_decisions(self) -> list[Decision]:
        """Read the decisions, skipping lines damaged since: nothing is decided from their content."""
        decisions: list[Decision] = []
        path = self.decision_log.path
        # Another process may be truncating the file at this moment, so count the lines here as well.
        for line in (journal.read_lines(path) if path.is_file() else [])[: self.decision_log.lines]:
            with suppress(ValueError, RecursionError):
                decisions.append(Decision.from_json(json.loads(line)))
        return decisions

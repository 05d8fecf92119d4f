"""Records of a training: its journals on the disk, its decisions in memory, and what it has reported already."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from accmt.checkpoint.archive import move_to_archive
from accmt.display.notebook import Decisions
from accmt.report.live import LiveReport
from accmt.rules import Decision, Observation, RecordedReplicates, with_replicates
from accmt.rules.codec import SPARSE, Count, Jsonable, from_plain
from accmt.rules.reserved_names import LOG
from accmt.tracking.journal import DECISIONS, HISTORY, REPLICATES, Journal, read_lines
from accmt.tracking.step_log import StepLog

_T = TypeVar("_T", bound=Jsonable)


@dataclass(frozen=True, slots=True)
class _State:
    nan_reported: list[str]
    history: Count
    decisions: Count
    replicates: Count = field(default=0, metadata=SPARSE)


class Records:
    """Records of a training.

    Args:
        model_path: The folder of the journals.
        writes: This process writes them; the others only count lines.
        reports: Whether a report is asked for.

    Attributes:
        history: The journal of evaluations.
        replicates: The journal of the replicates that evaluations have.
        decision_log: The journal of decisions.
        steps: The log of what happens between evaluations.
        report: The report that is rewritten after evaluations; None if this process writes none.
        observations: All evaluations.
        decisions: All decisions.
        reported: Rules and values that a warning was given about, once.
        failed_savings: Rules whose last model could not be written.
    """

    def __init__(self, model_path: Path, *, writes: bool, reports: bool = False) -> None:
        self.history = Journal(model_path / HISTORY, writes=writes)
        self.replicates = Journal(model_path / REPLICATES, writes=writes)
        self.decision_log = Journal(model_path / DECISIONS, writes=writes)
        self.steps = StepLog(model_path / LOG, writes=writes)
        self.report = LiveReport(model_path) if reports and writes else None
        self.observations: list[Observation] = []
        self.decisions = Decisions()
        self.reported: set[str] = set()
        self.failed_savings: set[str] = set()

    @property
    def journals(self) -> tuple[Journal, ...]:
        """Journals that a resume cuts to the checkpoint."""
        return self.history, self.replicates, self.decision_log

    def append(self, observation: Observation) -> str | None:
        """Append an evaluation to its journals, its replicates first, so that none in the history lacks them.

        Returns:
            A warning if a line waits to be written.

        Raises:
            OSError: Neither a line nor the one before could be written.
        """
        waits = None
        if observation.replicates:
            recorded = RecordedReplicates(observation.progress.evaluation, observation.replicates)
            waits = self.replicates.append(recorded.to_json())
        return self.history.append(observation.to_json()) or waits

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
        for journal in self.journals:
            journal.flush()

    def state_dict(self) -> dict[str, Any]:
        """Return the numbers of lines, all of which are on the disk then, and what was reported.

        Raises:
            OSError: A line cannot be written.
        """
        self.flush()
        lines = {"history": self.history.lines, "decisions": self.decision_log.lines}
        lines |= {"replicates": self.replicates.lines} if self.replicates.lines else {}
        return {"nan_reported": sorted(self.reported), **lines}

    def check(self, state: Any) -> None:
        """Check that it is a state of records."""
        from_plain(_State, state)

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Cut the journals to the lines that they had, and return which of these are lost, one line each.

        A journal with damaged lines is moved to `earlier-N`, and its readable lines are written again.
        """
        self.reported = set(state["nan_reported"])
        observations, of_history = _cut(self.history, state["history"], Observation, "evaluations")
        recorded, of_replicates = _cut(self.replicates, state.get("replicates", 0), RecordedReplicates, "replicates")
        self.observations[:] = with_replicates(observations, recorded)
        self.decisions[:], of_decisions = _cut(self.decision_log, state["decisions"], Decision, "decisions")
        return of_history + of_replicates + of_decisions


def _cut(journal: Journal, count: int, kind: type[_T], name: str) -> tuple[list[_T], list[str]]:
    """Keep the readable ones of the first lines of a journal: nothing is decided from their content.

    Returns:
        The entries, and what is lost.
    """
    lines = _first_lines(journal.path, count)
    readable = [(line, entry) for line in lines if (entry := _entry(line, kind)) is not None]
    if len(readable) == len(lines):
        journal.cut(count)
        moved = ""
    else:
        moved = _move_aside(journal)
        journal.replace([line for line, _ in readable])
    entries = [entry for _, entry in readable]
    lost = f"{len(entries)} of {count} {name} can be read: the rest is lost{moved}"
    return entries, [lost] if len(entries) < count else []


def _move_aside(journal: Journal) -> str:
    """Move a damaged journal away if this process writes it, and return where to, as the end of a sentence."""
    if not journal.writes:
        return ""
    aside = move_to_archive(journal.path.parent, [journal.path])
    return f"; the damaged {journal.path.name} was moved to {aside}"


def _first_lines(path: Path, count: int) -> list[str]:
    """Read the first lines of a journal, which the main process may be replacing at this moment."""
    with suppress(FileNotFoundError):
        return read_lines(path)[:count]
    return []


def _entry(line: str, kind: type[_T]) -> _T | None:
    with suppress(ValueError, RecursionError):
        return kind.from_json(json.loads(line))
    return None

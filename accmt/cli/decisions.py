"""Decisions of a training on the terminal: a table, or plain columns where rich is not installed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec

from accmt.cli.output import write, write_rich
from accmt.rules import Decision

COLUMNS = ("evaluation", "step", "epoch", "rule", "values", "verdict", "why")


def rows_of(decision: Decision) -> Iterator[tuple[object, ...]]:
    """Yield a row for each verdict of a decision, and for its stop."""
    place = decision.progress.evaluation, decision.progress.step, decision.progress.epoch
    for verdict in decision.verdicts:
        yield *place, verdict.rule, " ".join(map(str, verdict.values)), verdict.outcome.value, verdict.reason
    if decision.stop is not None:
        yield *place, "", "", "stop", decision.stop.reason


def write_decisions(decisions: Sequence[Decision], rule: str | None, lines: Iterable[str]) -> None:
    """Write decisions, those of one rule if it is given, and lines below them."""
    if find_spec("rich") is not None:
        from accmt.display.tables import decision_table  # imports rich, which not every call needs

        write_rich(decision_table(decisions, rule), "", *lines)
        return
    rows = (row for decision in decisions for row in rows_of(decision) if rule in (None, row[3], ""))
    cells = [COLUMNS, *(tuple(map(str, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for line in ("", *lines):
        write(line)

"""The table of the decisions of a training."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest

from rich.table import Table
from rich.text import Text

from accmt.rules import Decision, Outcome
from accmt.rules.printable import shown

_STYLES = {
    Outcome.SAVED: "green",
    Outcome.NOT_BETTER: "",
    Outcome.BLOCKED: "yellow",
    Outcome.NAN: "red",
    Outcome.INACTIVE: "dim",
    Outcome.FAILED: "red",
}


def decision_table(decisions: Iterable[Decision], rule: str | None = None) -> Table:
    """Return a table with one row per evaluation and rule (values, verdict, reason), and the stop if there was one."""
    table = Table(title="Decisions", title_justify="left", box=None, pad_edge=False)
    for column in ("evaluation", "step", "epoch"):
        table.add_column(column, justify="right")
    for column in ("rule", "values", "verdict", "why"):
        table.add_column(column, overflow="fold")
    rows = list(decisions)
    for decision, following in zip_longest(rows, rows[1:]):
        if following is not None and _is_repeated(decision, following):
            continue
        progress = decision.progress
        place = (str(progress.evaluation), str(progress.step), str(progress.epoch))
        for verdict in decision.verdicts:
            if rule in (None, verdict.rule):
                word = Text(verdict.outcome.value, _STYLES[verdict.outcome])
                values = ", ".join(f"{value:.6g}" for value in verdict.values)
                table.add_row(*place, Text(shown(verdict.rule)), values, word, Text(shown(verdict.reason)))
                place = ("", "", "")
        if decision.stop is not None:
            table.add_row(*place, "", "", Text("stop", "bold"), Text(shown(decision.stop.reason)))
    return table


def _is_repeated(decision: Decision, following: Decision) -> bool:
    """Return whether the evaluation at the end of the same step repeats a stop between evaluations."""
    at_one_step = decision.progress.step == following.progress.step
    return not decision.verdicts and at_one_step and decision.stop == following.stop

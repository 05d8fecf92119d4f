"""The table of the decisions of a training."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from accmt.rules import Decision, Outcome
from accmt.rules.printable import shown

_PLACE = ("evaluation", "step", "epoch")
_LEAST_WHY = 20  # columns
_STYLES = {
    Outcome.SAVED: "green",
    Outcome.NOT_BETTER: "",
    Outcome.BLOCKED: "yellow",
    Outcome.NAN: "red",
    Outcome.INACTIVE: "dim",
    Outcome.FAILED: "red",
}


class _Decisions(Table):
    """Table of decisions, and blocks where the output is too narrow for it: neither words nor numbers are broken."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        return super().__rich_console__(console, options) if _width(self) <= options.max_width else self._blocks()

    def _blocks(self) -> RenderResult:
        yield Text(str(self.title), "bold")
        for *place, rule, values, word, why in zip(*(column.cells for column in self.columns), strict=True):
            if place[0]:
                yield Text(", ".join(map(" ".join, zip(_PLACE, place, strict=True))))
            cells = [Text.assemble(cell) for cell in (rule, values, word, why) if cell]
            yield Padding(Text("  ").join(cells), (0, 0, 0, 2), expand=False)


def _width(table: Table) -> int:
    """Return the columns that the table needs if only the reasons are wrapped."""
    *others, why = ([str(column.header), *map(str, column.cells)] for column in table.columns)
    words = max(cell_len(word) for cell in why for word in cell.split())
    return sum(max(map(cell_len, cells)) + 2 for cells in others) + max(words, _LEAST_WHY)


def decision_table(decisions: Iterable[Decision], rule: str | None = None) -> Table:
    """Return a table with one row per evaluation and rule (values, verdict, reason), and the stop if there was one."""
    table = _Decisions(title="Decisions", title_justify="left", box=None, pad_edge=False)
    for column in _PLACE:
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("rule", "values", "verdict"):
        table.add_column(column, no_wrap=True)
    table.add_column("why", overflow="fold")
    rows = list(decisions)
    for decision, following in zip_longest(rows, rows[1:]):
        if following is not None and _is_repeated(decision, following):
            continue
        progress = decision.progress
        place = (str(progress.evaluation), str(progress.step), str(progress.epoch))
        for verdict in decision.all_verdicts:
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
    return not decision.all_verdicts and at_one_step and decision.stop == following.stop

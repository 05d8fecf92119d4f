"""Output of a search on the main process: the space, a line for each trial, and a table of the best trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from accmt.hp_search.objective import Direction, SearchObjective
from accmt.hp_search.space import Range, Space, shown_value
from accmt.hp_search.study import Asked, TrialOutcome, TrialState

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_MOST_ROWS = 10
_DIGITS = 6


def before_search(
    name: str, space: Space, objective: SearchObjective, trials: Sequence[FrozenTrial]
) -> list[RenderableType]:
    """Describe the search space, and the trials that the study already has."""
    before = f", which has {len(trials)} trial{'s' * (len(trials) != 1)}" if trials else ""
    table = Table.grid(padding=(0, 2))
    for parameter, declared in space.searched.items():
        log = ", log scale" if isinstance(declared, Range) and declared.log else ""
        table.add_row(Text(parameter, "bold"), Text(f"{declared}{log}"))
    title = Text(f"study {name}{before}: {objective.direction} {objective.name}", "bold")
    return [title, table] if table.row_count else [title]


def trial_line(space: Space, asked: Asked, outcome: TrialOutcome, name: str, best: FrozenTrial | None) -> Text:
    """Describe the outcome of a trial, its values, and the best trial so far."""
    values = _values({key: asked.values[key] for key in space.searched if key in asked.values})
    if outcome.state is TrialState.COMPLETE:
        result, style = f"{name} {outcome.value:.{_DIGITS}g}", ""
    elif outcome.state is TrialState.PRUNED:
        result, style = outcome.error, "dim"
    else:
        result, style = f"failed: {outcome.error}", "red"
    line = f"trial {asked.number}: {values}{'; ' if values else ''}{result}"
    if best is not None:
        line += " (the best)" if best.number == asked.number else f" (best: {_value(best)}, trial {best.number})"
    return Text(line, style)


def after_search(name: str, objective: SearchObjective, trials: Sequence[FrozenTrial]) -> list[RenderableType]:
    """Summarize how the trials ended, and list the best of them in a table, best first."""
    complete = ranked(trials, objective.direction)
    words = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
    counts = {word: sum(trial.state.name == state for trial in trials) for state, word in words.items()}
    told = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    summary = Text(f"study {name}: {len(trials)} trials, {told}", "bold")
    if not complete:
        return ["", Text("no trial completed, so there is no best one", "red"), summary]
    table = Table(box=None, pad_edge=False)
    shown_trials = complete[:_MOST_ROWS]
    names = list(dict.fromkeys(name for trial in shown_trials for name in trial.params))
    for column in ("trial", objective.name, *names):
        table.add_column(column, justify="right", overflow="fold")
    for trial in shown_trials:
        cells = (shown_value(trial.params[name]) if name in trial.params else "" for name in names)
        table.add_row(str(trial.number), _value(trial), *map(Text, cells))
    return ["", Text(f"The best trials, {objective.direction} {objective.name}", "italic"), table, "", summary]


def ranked(trials: Sequence[FrozenTrial], direction: Direction) -> list[FrozenTrial]:
    """Return the complete trials, best first; among equals the older."""
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    sign = -1.0 if direction == "maximize" else 1.0
    return sorted(complete, key=lambda trial: sign * (trial.value or 0.0))


def _values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {shown_value(value)}" for name, value in values.items())


def _value(trial: FrozenTrial) -> str:
    return f"{trial.value:.{_DIGITS}g}"

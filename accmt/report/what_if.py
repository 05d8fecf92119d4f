"""Cards of rules that a training did not have: what they would have decided, by a replay of its history."""

from __future__ import annotations

import math
from collections.abc import Iterator

from accmt.report.training import RuleCard, duration, objective_of, when
from accmt.rules import Facts, Rules
from accmt.rules.describe import in_words
from accmt.rules.replay import History
from accmt.rules.trials import Trial, best_of_all, tried


def supposed(rules: Rules, facts: Facts, history: History) -> Iterator[RuleCard]:
    """Yield a card for each saving rule; all of them together stop the training. They must have passed `check`."""
    for trial in tried(rules, facts, history, [best_of_all(rule, facts, history) for rule in rules.savings]):
        rule, pairs = trial.rule, [(d.progress, v) for d in trial.decisions for v in d.verdicts]
        name = f"what if: {rule.text}" + ("" if rule.patience is None else f", patience {rule.patience}")
        verdicts = tuple(pair for pair in pairs if pair[1].rule == rule.name)
        best = next((one for one, _ in verdicts if trial.best and one.evaluation == trial.best.evaluation), None)
        objectives = tuple(map(objective_of, rule.saving.ranking.objectives))
        values = trial.best.values if trial.best else ()
        yield RuleCard(name, in_words(rule, facts), objectives, verdicts, best, values, "", "", _effect(trial))


def _effect(trial: Trial) -> str:
    """Say what would have been different."""
    stop = trial.stop
    saved = f"{trial.saved:.0%} fewer steps"
    if not math.isnan(trial.saved_time):
        saved += f", {duration(trial.last.elapsed - trial.end.elapsed)} ({trial.saved_time:.0%}) less time"
    end = "It would not have stopped earlier"
    if stop is not None and trial.saved:
        end = f"It would have stopped {when(stop.progress)}: {saved}"
    if not trial.lost:
        return f"{end}. It would have saved no model."
    names = [str(objective) for objective in trial.rule.saving.ranking.objectives]
    losses = [
        f"{name} {abs(lost):.4g} {'worse' if lost > 0 else 'better'}"
        for name, lost in zip(names, trial.lost, strict=True)
        if lost
    ]
    against = "the best of the whole training"
    return f"{end}. Its model: {', '.join(losses)} than {against}." if losses else f"{end}. Its model: {against}."

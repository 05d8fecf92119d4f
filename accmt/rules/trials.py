"""Tries rules on recorded trainings: how much of each training they would have saved, and at what loss of quality."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from accmt.rules.decision import Decision, KeptModel
from accmt.rules.direction import direction_of
from accmt.rules.progress import Progress
from accmt.rules.replay import History, replay
from accmt.rules.rule import Facts, Rules, SavingRule


@dataclass(frozen=True, slots=True)
class Trial:
    """Outcome of a saving rule on a recorded training.

    Attributes:
        rule: The rule.
        decisions: What it would have decided, and the rules beside it.
        end: Where the training would have ended.
        last: Where the recorded training ended.
        best: The best model that the rule would have kept; None if it would have saved nothing.
        lost: How much worse each objective of `best` is than that of the best model of the whole training; empty if
            there is none. A negative number is a gain, which rules with several objectives can have.
    """

    rule: SavingRule
    decisions: tuple[Decision, ...]
    end: Progress
    last: Progress
    best: KeptModel | None
    lost: tuple[float, ...]

    @property
    def stop(self) -> Decision | None:
        """The decision that would have stopped the training; None if it would have run as long as it did."""
        return next((decision for decision in self.decisions if decision.stop is not None), None)

    @property
    def saved(self) -> float:
        """The share of the recorded steps that would not have been trained, from 0 to 1."""
        return 1 - self.end.step / self.last.step if self.last.step else 0.0

    @property
    def saved_time(self) -> float:
        """The same share of the recorded time; NaN if it was not recorded."""
        return 1 - self.end.elapsed / self.last.elapsed if self.last.elapsed else math.nan


def best_of_all(rule: SavingRule, facts: Facts, history: History) -> KeptModel | None:
    """Return the best model of a whole training by the ranking and conditions of a rule, without its `by`."""
    unlimited = replace(rule, saving=replace(rule.saving, by=None), patience=None)
    return _best(replay(Rules((unlimited,)), facts, History(history.observations)), rule.name)


def tried(rules: Rules, facts: Facts, history: History, references: Sequence[KeptModel | None]) -> tuple[Trial, ...]:
    """Replay rules together and return a trial for each saving rule. They must have passed `check`, and the history
    must not be empty.

    What the recorded training was stopped by, and models that it failed to write, do not count.

    Args:
        rules: The rules.
        facts: What the training reports.
        history: The training.
        references: What each saving rule is compared with: see `best_of_all`.
    """
    decisions = tuple(replay(rules, facts, History(history.observations)))
    last = history.observations[-1].progress
    end = next((decision.progress for decision in decisions if decision.stop is not None), last)
    trials = []
    for rule, reference in zip(rules.savings, references, strict=True):
        best = _best(decisions, rule.name)
        lost: tuple[float, ...] = ()
        if best is not None and reference is not None:
            signs = [1 if direction_of(objective, facts) else -1 for objective in rule.saving.ranking.objectives]
            pairs = zip(signs, reference.values, best.values, strict=True)
            lost = tuple(0.0 if value == other else sign * (value - other) for sign, value, other in pairs)
        trials.append(Trial(rule, decisions, end, last, best, lost))
    return tuple(trials)


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Return which points no other one beats: more of the first number, without more of the second, or the reverse.

    A point with a NaN is not among them.
    """
    whole = [point for point in points if not any(map(math.isnan, point))]

    def is_beaten(gain: float, cost: float) -> bool:
        return any(g >= gain and c <= cost and (g, c) != (gain, cost) for g, c in whole)

    return [not any(map(math.isnan, point)) and not is_beaten(*point) for point in points]


def _best(decisions: Sequence[Decision], rule: str) -> KeptModel | None:
    """Return the best model that a rule keeps at the end."""
    verdicts = [verdict for decision in decisions for verdict in decision.verdicts if verdict.rule == rule]
    return verdicts[-1].kept[0] if verdicts and verdicts[-1].kept else None

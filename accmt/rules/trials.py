"""Tries rules on recorded trainings: how much of each training they would have saved, and at what loss of quality."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from accmt.rules.decision import Decision, KeptModel
from accmt.rules.direction import direction_of
from accmt.rules.progress import Progress
from accmt.rules.replay import History, replay
from accmt.rules.rule import Facts, Rules, SavingRule, StopCondition


@dataclass(frozen=True, slots=True)
class Trial:
    """Outcome of a saving rule on a recorded training.

    Attributes:
        decisions: What the rule would have decided.
        end: Where the training would have ended.
        last: Where the recorded training ended.
        best: The best model that the rule would have kept; None if it would have saved nothing.
        lost: How much worse each objective of `best` is than that of the best model of the whole training; empty if
            there is none. A negative number is a gain, which rules with several objectives can have.
    """

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
    return _best(replay(Rules((unlimited,)), facts, History(history.observations)))


def tried(
    rule: SavingRule,
    facts: Facts,
    history: History,
    reference: KeptModel | None,
    stop_when: Sequence[StopCondition] = (),
) -> Trial:
    """Replay one saving rule, with stop conditions. Both must have passed `check`; the history must not be empty.

    What the recorded training was stopped by, and models that it failed to write, do not count.

    Args:
        rule: The rule.
        facts: What the training reports.
        history: The training.
        reference: What the rule is compared with: see `best_of_all`.
        stop_when: The stop conditions.
    """
    decisions = tuple(replay(Rules((rule,), tuple(stop_when)), facts, History(history.observations)))
    best = _best(decisions)
    last = history.observations[-1].progress
    stopped = next((decision.progress for decision in decisions if decision.stop is not None), last)
    lost: tuple[float, ...] = ()
    if best is not None and reference is not None:
        objectives = [objective for group in rule.saving.ranking.groups for objective in group]
        signs = [1 if direction_of(objective, facts) else -1 for objective in objectives]
        pairs = zip(signs, reference.values, best.values, strict=True)
        lost = tuple(0.0 if value == other else sign * (value - other) for sign, value, other in pairs)
    return Trial(decisions, stopped, last, best, lost)


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Return which points no other one beats: more of the first number, without more of the second, or the reverse.

    A point with a NaN is not among them.
    """
    whole = [point for point in points if not any(map(math.isnan, point))]

    def is_beaten(gain: float, cost: float) -> bool:
        return any(g >= gain and c <= cost and (g, c) != (gain, cost) for g, c in whole)

    return [not any(map(math.isnan, point)) and not is_beaten(*point) for point in points]


def _best(decisions: Sequence[Decision]) -> KeptModel | None:
    """Return the best model kept at the end."""
    verdicts = [verdict for decision in decisions for verdict in decision.verdicts]
    return verdicts[-1].kept[0] if verdicts and verdicts[-1].kept else None

"""What a trial is worth: the best value of a rule, or what a function makes of the last evaluation."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from accmt.config.errors import ConfigError, Problem
from accmt.rules import Facts, RuleError, Rules, SavingRule, check
from accmt.rules import Problem as RuleProblem
from accmt.rules.direction import direction_of
from accmt.rules.store import VALID_LOSS
from accmt.trainer import Trainer

Direction = Literal["minimize", "maximize"]
Values = dict[str, dict[str, float]]
"""Dataset -> metric -> value."""

DEFAULT = f"best_{VALID_LOSS}"


class NoValue(ValueError):
    """A trial has come to its end and has no value."""


class Objective(Protocol):
    """What is to become best.

    Attributes:
        name: What to call its value where it is shown.
        text: What tells it from other objectives, kept with the study.
        direction: Which way is better.
        rule: The rule that the trainer of a trial gets, None for its default.
    """

    @property
    def name(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def direction(self) -> Direction: ...
    @property
    def rule(self) -> str | None: ...

    def current(self, trainer: Trainer) -> float:
        """The value of the evaluation that was just made."""
        ...

    def final(self, trainer: Trainer, last: float | None) -> float:
        """The value of a training that has ended; `last` is that of its last evaluation, None without any.

        Raises:
            NoValue: It has none.
        """
        ...


@dataclass(frozen=True, slots=True)
class RuleObjective:
    """The value with which the rule's best model was saved, or would have been: the best over all evaluations.

    With clauses (`if`, `by`, `after`) it is the best of those evaluations at which the rule saves.
    """

    saving: SavingRule
    direction: Direction

    @property
    def name(self) -> str:
        return str(self.saving.saving.ranking)

    @property
    def text(self) -> str:
        return str(self.saving.saving)

    @property
    def rule(self) -> str:
        return self.saving.text

    def current(self, trainer: Trainer) -> float:
        verdicts = {verdict.rule: verdict for verdict in trainer.decisions[-1].verdicts}
        return verdicts[self.saving.name].values[0]

    def final(self, trainer: Trainer, last: float | None) -> float:
        best = trainer.state.model_savings.get(self.saving.name)
        if best is not None:
            return best[0]
        reasons = [verdict.reason for decision in trainer.decisions for verdict in decision.verdicts]
        why = f": {reasons[-1]}" if reasons else ", for there was no evaluation"
        raise NoValue(f"{self.name} has no value{why}")


@dataclass(frozen=True, slots=True)
class FunctionObjective:
    """What a function makes of the metrics of the last evaluation."""

    function: Callable[[Values], Any]
    direction: Direction
    name: str = "value"
    text: str = "best_metric_fn"
    rule: None = None

    def current(self, trainer: Trainer) -> float:
        metrics = trainer.state.additional_metrics
        value = self.function({dataset: dict(values) for dataset, values in metrics.items()})
        single = getattr(value, "numel", lambda: 1)() == 1 and hasattr(value, "__float__")
        if isinstance(value, bool) or not (single or isinstance(value, numbers.Real)):
            raise TypeError(f"best_metric_fn must return a number, not {value!r} ({type(value).__name__})")
        return float(value)

    def final(self, trainer: Trainer, last: float | None) -> float:
        if last is None:
            raise NoValue("best_metric_fn was given nothing, for there was no evaluation")
        if math.isnan(last):
            raise NoValue("best_metric_fn returned nan after the last evaluation")
        return last


def rule_objective(text: str, given: Direction | None, facts: Facts) -> RuleObjective:
    """The objective that a rule's text stands for.

    Args:
        text: The rule.
        given: The direction that the user asked for, None if nothing was said.
        facts: What the trainings report.

    Raises:
        RuleError: The text is wrong, names what the trainings do not report, or has several objectives.
        ConfigError: The direction contradicts that of the metric.
    """
    rule = SavingRule.parse(text)
    objectives = rule.saving.ranking.objectives
    if len(objectives) > 1:
        span = objectives[1].span
        allowed = "take one of them, or combine them: a sum, a mean, worst(...)"
        raise RuleError([RuleProblem("a search has one objective", text, span, allowed)])
    check(Rules((rule,)), facts)
    direction: Direction = "maximize" if direction_of(objectives[0], facts) else "minimize"
    if given not in (None, direction):
        better = "greater" if direction == "maximize" else "lower"
        problem = f"'{given}' contradicts {rule.name}, where {better} is better: leave the direction out"
        raise ConfigError([Problem("direction", problem)], "optimize(...)")
    return RuleObjective(rule, direction)

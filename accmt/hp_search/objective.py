"""Objectives of a search: the best value of a rule, or a function of the last evaluation's metrics."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from accmt.config.errors import ConfigError, Problem
from accmt.rules import Facts, RuleError, Rules, SavingRule, check
from accmt.rules import RuleProblem as RuleProblem
from accmt.rules.direction import direction_of
from accmt.rules.store import VALID_LOSS
from accmt.states import TrainerProtocol

Direction = Literal["minimize", "maximize"]
MetricValues = dict[str, dict[str, float]]
"""Dataset -> metric -> value."""

DEFAULT = f"best_{VALID_LOSS}"


class NoValue(ValueError):
    """Raised when a trial has ended without a value."""


@dataclass(frozen=True, slots=True)
class RuleObjective:
    """The best value of a rule over all evaluations: that of its best model, whether or not models are saved.

    With clauses (`if`, `by`, `after`) it is the best of the evaluations at which the rule saves.
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

    def current(self, trainer: TrainerProtocol) -> float:
        verdicts = {verdict.rule: verdict for verdict in trainer.decisions[-1].verdicts}
        return verdicts[self.saving.name].values[0]

    def final(self, trainer: TrainerProtocol, last: float | None) -> float:
        best = trainer.state.model_savings.get(self.saving.name)
        if best is not None:
            return best[0]
        reasons = [verdict.reason for decision in trainer.decisions for verdict in decision.verdicts]
        why = f": {reasons[-1]}" if reasons else ", because there was no evaluation"
        raise NoValue(f"{self.name} has no value{why}")


@dataclass(frozen=True, slots=True)
class FunctionObjective:
    """A function of the metrics of the last evaluation."""

    function: Callable[[MetricValues], Any]
    direction: Direction
    name: str = "value"
    text: str = "best_metric_fn"
    rule: None = None

    def current(self, trainer: TrainerProtocol) -> float:
        metrics = trainer.state.additional_metrics
        value = self.function({dataset: dict(values) for dataset, values in metrics.items()})
        single = getattr(value, "numel", lambda: 1)() == 1 and hasattr(value, "__float__")
        if isinstance(value, bool) or not (single or isinstance(value, numbers.Real)):
            raise TypeError(f"best_metric_fn must return a number, not {value!r} ({type(value).__name__})")
        return float(value)

    def final(self, trainer: TrainerProtocol, last: float | None) -> float:
        if last is None:
            raise NoValue("best_metric_fn was not called, because there was no evaluation")
        if math.isnan(last):
            raise NoValue("best_metric_fn returned nan after the last evaluation")
        return last


SearchObjective = RuleObjective | FunctionObjective
"""Quantity that the search optimizes.

Its value is shown under `name`, `text` identifies it in the study, `direction` is the better one, and `rule` is for the
trainer of a trial (None for its default). `current` returns the value of the evaluation that was just made. `final`
returns that of a training that has ended; `last` is that of its last evaluation, None if there was none.
"""


def rule_objective(text: str, given: Direction | None, facts: Facts) -> RuleObjective:
    """Return the objective for the text of a rule.

    Args:
        text: The rule.
        given: The direction that the user asked for; None if there is none.
        facts: The facts that the trainings report.

    Raises:
        RuleError: If the text is wrong, names metrics that the trainings do not report, or has several objectives.
        ConfigError: If the direction contradicts that of the metric.
    """
    rule = SavingRule.parse(text)
    objectives = rule.saving.ranking.objectives
    if len(objectives) > 1:
        span = objectives[1].span
        allowed = "use one of them, or combine them: a sum, a mean, worst(...)"
        raise RuleError([RuleProblem("a search has one objective", text, span, allowed)])
    check(Rules((rule,)), facts)
    direction: Direction = "maximize" if direction_of(objectives[0], facts) else "minimize"
    if given not in (None, direction):
        better = "greater" if direction == "maximize" else "lower"
        problem = f"'{given}' contradicts {rule.name}, where {better} is better: leave the direction out"
        raise ConfigError([Problem("direction", problem)], "optimize(...)")
    return RuleObjective(rule, direction)

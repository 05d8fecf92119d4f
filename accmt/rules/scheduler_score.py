"""Score that a learning rate scheduler follows: one objective of a rule, without state of its own."""

from __future__ import annotations

from dataclasses import dataclass

from accmt.rules.checker import check
from accmt.rules.direction import direction_of
from accmt.rules.engine import RuleEngine
from accmt.rules.errors import RuleError, RuleProblem
from accmt.rules.rule import Facts, Rules, SavingRule
from accmt.rules.static_checks import calls_over_time
from accmt.rules.store import Observation


@dataclass(frozen=True, slots=True)
class FollowedScore:
    """A score such as `valid_loss`, `best_accuracy@dev` or `mean(f1)`, written as a rule with one objective."""

    rule: SavingRule

    @classmethod
    def parse(cls, text: str) -> FollowedScore:
        """Parse the text and check all that needs no training.

        Raises:
            RuleError: With every mistake in the text.
        """
        rule = SavingRule.parse(text)
        saving, problems = rule.saving, []
        if sum(map(len, saving.ranking.groups)) > 1:
            problems.append(RuleProblem("a scheduler follows one score", text, saving.span, "leave the others out"))
        clauses = (saving.condition, saving.by, saving.after, saving.keep)
        if any(clause is not None for clause in clauses):
            problems.append(
                RuleProblem("a scheduler follows the score alone", text, saving.span, "leave the clauses out")
            )
        for call in calls_over_time(saving):
            allowed = "the scheduler remembers by itself: give the score alone"
            problems.append(RuleProblem(f"'{call.function}' remembers former evaluations", text, call.span, allowed))
        if problems:
            raise RuleError(problems)
        return cls(rule)

    def __str__(self) -> str:
        return self.rule.name.removeprefix("best_")

    def check(self, facts: Facts) -> None:
        """Check it against what a training reports.

        Raises:
            RuleError: With all problems.
        """
        check(Rules((self.rule,)), facts)

    def greater_is_better(self, facts: Facts) -> bool:
        """Return the direction of a score that has passed the check."""
        [[objective]] = self.rule.saving.ranking.groups
        return direction_of(objective, facts) is True

    def value(self, observation: Observation, facts: Facts) -> float:
        """Return its value in an evaluation."""
        [verdict] = RuleEngine(Rules((self.rule,)), facts).after_evaluation(observation).verdicts
        [value] = verdict.values
        return value

"""Verdict of one saving rule on one evaluation: pure functions of (rule, its state, values)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from accmt.rules.codec import Count, Jsonable
from accmt.rules.decision import KeptModel, Outcome, Verdict
from accmt.rules.evaluator import exceeds
from accmt.rules.nodes import Amount, Expression
from accmt.rules.rule import SavingRule

Scores = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Objective:
    """One objective of a rule, which way is better, and its canonical text."""

    expression: Expression
    greater_is_better: bool
    text: str


@dataclass(frozen=True)
class RankedRule:
    """A saving rule with its name, its objectives and their directions by group, and whether models are written."""

    rule: SavingRule
    name: str
    groups: tuple[tuple[Objective, ...], ...]
    writes: bool = True

    @cached_property
    def objectives(self) -> tuple[Objective, ...]:
        return tuple(objective for group in self.groups for objective in group)

    @cached_property
    def places(self) -> tuple[tuple[tuple[Objective, ...], slice], ...]:
        """Each group with the slice of its values among those of all objectives."""
        ends = list(accumulate(map(len, self.groups)))
        return tuple((group, slice(end - len(group), end)) for group, end in zip(self.groups, ends, strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class RuleState(Jsonable):
    """State of a rule between evaluations.

    Attributes:
        kept: The models it keeps, best first; for objectives joined by `/`, newest first.
        best_seen: The best values so far, saved or not.
        waited: Number of consecutive evaluations without improvement.
    """

    kept: tuple[KeptModel, ...] = ()
    best_seen: Scores | None = None
    waited: Count = 0

    def patience_left(self, patience: int | None) -> int:
        """Return the number of evaluations without improvement that are left, -1 without patience."""
        return -1 if patience is None else max(0, patience - self.waited)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model after one evaluation, as one rule sees it.

    Attributes:
        values: The value of each objective.
        evaluation, step: The number of the evaluation, and its step.
        blocked: Why it may not be saved, None if it may.
        waiting: Whether the rule's `after` has not passed yet; evaluations until then cost no patience.
    """

    values: Scores
    evaluation: int
    step: int
    blocked: str | None = None
    waiting: bool = False


def judge(ranked: RankedRule, state: RuleState, candidate: Candidate) -> tuple[Verdict, RuleState]:
    """Return the verdict of a rule on a candidate, and the state of the rule afterwards."""
    values, rule = candidate.values, ranked.rule
    reference = _to_beat(ranked, state)
    better = beats_best = False
    if any(map(math.isnan, values)):
        outcome, reason = Outcome.NAN, f"{_nan(ranked, values)} is nan"
    else:
        better, reason = beats(ranked, values, reference)
        beats_best = better if state.best_seen == reference else beats(ranked, values, state.best_seen)[0]
        outcome = Outcome.SAVED if better else Outcome.NOT_BETTER
        if better and reference is None and state.kept:
            reason = f"{_shown(values)} is among the best {rule.keep}"
        if better and candidate.blocked is not None:
            outcome, reason = Outcome.BLOCKED, candidate.blocked
    kept, new = state.kept, KeptModel(values, candidate.evaluation, candidate.step)
    if outcome is Outcome.SAVED:
        reason = f"{reason}, {'saved' if ranked.writes else 'not written, as model saving is disabled'}"
        kept = _keep(ranked, kept, new)
    leads = outcome is Outcome.SAVED and kept[0] is new
    waited = 0 if beats_best or leads else state.waited + (not candidate.waiting)
    after = RuleState(kept, values if beats_best else state.best_seen, waited)
    left = after.patience_left(rule.patience)
    return Verdict(ranked.name, values, reference, outcome, reason, left, kept), after


def beats(ranked: RankedRule, values: Scores, reference: Scores | None) -> tuple[bool, str]:
    """Return whether the values beat the reference, and the reason in words."""
    if reference is None:
        return True, f"{_shown(values)} is the first"
    by = ranked.rule.saving.by
    for group, place in ranked.places:
        if values[place] == reference[place]:
            continue
        pairs = list(zip(group, values[place], reference[place], strict=True))
        for objective, value, other in pairs:
            if _better(objective, other, value):
                if len(values) == 1:
                    return False, _both(value, other, "is not better than")
                return False, f"{objective.text}: {_both(value, other, 'is worse than')}"
        if any(_better(objective, value, other) and _enough(by, value, other) for objective, value, other in pairs):
            return True, _beats(values, reference)
        return False, f"{_beats(values, reference)}, but not by more than {by}"
    return False, f"{_shown(values)} is no better: a tie"


def _to_beat(ranked: RankedRule, state: RuleState) -> Scores | None:
    if not state.kept:
        return None
    if not ranked.rule.saving.ranking.is_total:
        return state.kept[0].values
    return state.kept[-1].values if len(state.kept) >= ranked.rule.keep else None


def _keep(ranked: RankedRule, kept: tuple[KeptModel, ...], new: KeptModel) -> tuple[KeptModel, ...]:
    if not ranked.rule.saving.ranking.is_total:
        return (new, *kept)[: ranked.rule.keep]
    ahead = sum(not _ranks_before(ranked, new.values, entry.values) for entry in kept)
    return (*kept[:ahead], new, *kept[ahead:])[: ranked.rule.keep]


def _ranks_before(ranked: RankedRule, values: Scores, others: Scores) -> bool:
    """Return whether `values` are strictly better, ignoring `by`; only for rules with a total order."""
    for objective, value, other in zip(ranked.objectives, values, others, strict=True):
        if value != other:
            return _better(objective, value, other)
    return False


def _better(objective: Objective, value: float, other: float) -> bool:
    return value > other if objective.greater_is_better else value < other


def _enough(by: Amount | None, value: float, other: float) -> bool:
    if by is None:
        return True
    return exceeds(value, other, by.value * (abs(other) / 100 if by.relative else 1))


def _nan(ranked: RankedRule, values: Scores) -> str:
    names = [o.text for o, value in zip(ranked.objectives, values, strict=True) if math.isnan(value)]
    return ", ".join(names)


def _beats(values: Scores, reference: Scores) -> str:
    if len(values) == 1:
        return _both(values[0], reference[0], "beats")
    return f"{_shown(values)} beats {_shown(reference)}"


def _both(value: float, other: float, verb: str) -> str:
    short = (f"{value:.6g}", f"{other:.6g}")
    if short[0] == short[1] and value != other:
        short = (repr(value), repr(other))
    return f"{short[0]} {verb} {short[1]}"


def _shown(values: Scores) -> str:
    texts = [f"{value:.6g}" for value in values]
    return texts[0] if len(texts) == 1 else f"({', '.join(texts)})"

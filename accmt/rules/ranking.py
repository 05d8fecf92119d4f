"""Verdict of one saving rule on one evaluation: pure functions of (rule, its state, values)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate

from accmt.rules.codec import SPARSE, Count, Jsonable
from accmt.rules.decision import KeptModel, Outcome, Verdict
from accmt.rules.evaluator import exceeds
from accmt.rules.nodes import Amount, Expression, format_number
from accmt.rules.rule import SavingRule
from accmt.rules.standard_error import PairedError, paired_error

Scores = tuple[float, ...]
_BEST = "best"


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


@dataclass(frozen=True, slots=True)
class Scored:
    """The values of a model's objectives, and the replicates of each if the rule asks for standard errors."""

    values: Scores
    replicates: tuple[Scores, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class RuleState(Jsonable):
    """State of a rule between evaluations.

    Attributes:
        kept: The models it keeps, best first; for objectives joined by `/`, newest first.
        best_seen: The best values so far, saved or not.
        waited: Number of consecutive evaluations without improvement.
        replicates: Evaluation of a kept model, or `best` for the best values so far -> replicates of each objective.
    """

    kept: tuple[KeptModel, ...] = ()
    best_seen: Scores | None = None
    waited: Count = 0
    replicates: Mapping[str, tuple[Scores, ...]] = field(default_factory=dict, metadata=SPARSE)

    @property
    def best(self) -> Scored | None:
        """The best values so far, with their replicates."""
        return None if self.best_seen is None else Scored(self.best_seen, self.replicates.get(_BEST, ()))

    def scored(self, model: KeptModel) -> Scored:
        """Return the values of a kept model, with their replicates."""
        return Scored(model.values, self.replicates.get(str(model.evaluation), ()))

    def keeping(self, kept: tuple[KeptModel, ...], replicates: Mapping[str, tuple[Scores, ...]]) -> RuleState:
        """Return the state with other kept models, and those of the replicates that belong to them."""
        places = {_BEST, *(str(model.evaluation) for model in kept)}
        return replace(self, kept=kept, replicates={at: entry for at, entry in replicates.items() if at in places})

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
        replicates: The replicates of each objective; empty if the rule does not ask for standard errors.
    """

    values: Scores
    evaluation: int
    step: int
    blocked: str | None = None
    waiting: bool = False
    replicates: tuple[Scores, ...] = ()


def judge(ranked: RankedRule, state: RuleState, candidate: Candidate) -> tuple[Verdict, RuleState]:
    """Return the verdict of a rule on a candidate, and the state of the rule afterwards."""
    values, rule = candidate.values, ranked.rule
    reference, scored = _to_beat(ranked, state), Scored(values, candidate.replicates)
    better = beats_best = False
    if any(map(math.isnan, values)):
        outcome, reason = Outcome.NAN, f"{_nan(ranked, values)} is nan"
    else:
        better, reason = beats(ranked, scored, reference)
        beats_best = better if state.best == reference else beats(ranked, scored, state.best)[0]
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
    replicates = dict(state.replicates)
    if candidate.replicates:
        replicates[str(candidate.evaluation)] = candidate.replicates
        replicates |= {_BEST: candidate.replicates} if beats_best else {}
    after = RuleState((), values if beats_best else state.best_seen, waited).keeping(kept, replicates)
    left, to_beat = after.patience_left(rule.patience), None if reference is None else reference.values
    return Verdict(ranked.name, values, to_beat, outcome, reason, left, kept), after


def beats(ranked: RankedRule, new: Scored, reference: Scored | None) -> tuple[bool, str]:
    """Return whether a model beats the reference, and the reason in words."""
    values = new.values
    if reference is None:
        return True, f"{_shown(values)} is the first"
    others = reference.values
    for group, place in ranked.places:
        if values[place] == others[place]:
            continue
        for objective, value, other in zip(group, values[place], others[place], strict=True):
            if _better(objective, other, value):
                if len(values) == 1:
                    return False, _both(value, other, "is not better than")
                return False, f"{objective.text}: {_both(value, other, 'is worse than')}"
        enough, how = _by_enough(ranked.rule.saving.by, new, reference, place)
        return enough, _beats(values, others) + how
    return False, f"{_shown(values)} is no better: a tie"


def _by_enough(by: Amount | None, new: Scored, old: Scored, place: slice) -> tuple[bool, str]:
    """Return whether a value of a group, in which none is worse, is better by enough, and the words for it."""
    values, others = new.values[place], old.values[place]
    pairs = [(value, other) for value, other in zip(values, others, strict=True) if value != other]
    if by is None or any(math.isinf(value - other) for value, other in pairs):
        return True, ""
    if by.standard_errors:
        return _by_errors(by, new, old, place)
    if any(exceeds(value, other, by.value * (abs(other) / 100 if by.relative else 1)) for value, other in pairs):
        return True, ""
    return False, f", but not by more than {by}"


def _by_errors(by: Amount, new: Scored, old: Scored, place: slice) -> tuple[bool, str]:
    """Compare the differences of a group with their standard errors; the words are about the clearest one."""
    found: list[tuple[float, float, PairedError]] = []
    for at in range(*place.indices(len(new.values))):
        value, other = new.values[at], old.values[at]
        if value != other:
            pair = (scored.replicates[at] if scored.replicates else () for scored in (new, old))
            found.append((value, other, paired_error(*pair)))
    known = [(value, other, error.value) for value, other, error in found if not math.isnan(error.value)]
    if not known:
        return False, f", but their difference has no standard error: {found[0][2].why_none}"
    if any(exceeds(value, other, by.value * error) for value, other, error in known):
        return True, _how_far(by, known)
    return False, f"{_how_far(by, known)}, not by more than {by}"


def _how_far(by: Amount, known: Sequence[tuple[float, float, float]]) -> str:
    if any(not error for *_, error in known):
        return " with a standard error of 0"
    errors = max(abs(value - other) / error for value, other, error in known)
    text = f"{errors:.1f}"
    return f" by {text if float(text) != by.value else format_number(errors)} se"


def _to_beat(ranked: RankedRule, state: RuleState) -> Scored | None:
    if not state.kept:
        return None
    if not ranked.rule.saving.ranking.is_total:
        return state.scored(state.kept[0])
    return state.scored(state.kept[-1]) if len(state.kept) >= ranked.rule.keep else None


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

"""Describes rules in words, for people who have never seen the language."""

from __future__ import annotations

from accmt.rules.direction import Disagree, direction_of
from accmt.rules.errors import numbered
from accmt.rules.nodes import Amount, Cadence, Call, Expression, Saving, format_number
from accmt.rules.rule import Facts, Reported, SavingRule, StopCondition
from accmt.rules.static_checks import measures
from accmt.rules.store import TRAIN_LOSS, VALID_LOSS

_LOSSES = Facts({VALID_LOSS: Reported((), greater_is_better=False)})


def in_words(rule: SavingRule, facts: Facts | None = None) -> str:
    """Describe a rule in one sentence.

    Args:
        rule: A rule that has passed the check with these facts.
        facts: What the training reports; without them only the directions of the losses are known.
    """
    saving = rule.saving
    parts = [_ranking(saving, rule.keep, facts)]
    if saving.by is not None:
        parts.append(f"by more than {_amount(saving.by)}")
    if rule.saving_above is not None:
        parts.append(f"above {format_number(rule.saving_above)}")
    if rule.saving_below is not None:
        parts.append(f"below {format_number(rule.saving_below)}")
    if saving.condition is not None:
        parts.append(f"if {saving.condition}")
    if saving.after is not None:
        parts.append(f"once more than {saving.after} have gone by")
    sentence = f"saves when {', '.join(parts)}"
    if rule.keep > 1:
        kept = "best" if saving.ranking.is_total else "last saved"
        sentence += f"; keeps the {rule.keep} {kept} models"
    if rule.patience is not None:
        sentence += f"; asks to stop after {numbered(rule.patience, 'evaluation')} without improvement"
    return sentence


def cadence_in_words(cadence: Cadence) -> str:
    """Describe how often a cadence comes due."""
    every = " or ".join(str(q).removeprefix("1 ") if q.value == 1 else str(q) for q in cadence.every)
    return f"every {every}" + (f", after {cadence.after}" if cadence.after is not None else "")


def stop_in_words(stop: StopCondition) -> str:
    """Describe when a condition stops the training."""
    return f"stops as soon as {stop.condition}"


def _ranking(saving: Saving, keep: int, facts: Facts | None) -> str:
    first, *others = (_group(group, facts) for group in saving.ranking.groups)
    is_any_kept = keep > 1 and saving.ranking.is_total
    than = f"in one of the {keep} models that it keeps" if is_any_kept else "at its last save"
    return f"{first} than {than}" + "".join(f", or in a tie {group}" for group in others)


def _amount(by: Amount) -> str:
    if not by.standard_errors:
        return str(by)
    return f"{format_number(by.value)} standard error{'' if by.value == 1 else 's'} of the difference"


def _group(objectives: tuple[Expression, ...], facts: Facts | None) -> str:
    if len(objectives) == 1:
        return f"{objectives[0]} is {_direction(objectives[0], facts)}"
    named = [f"{objective} ({_direction(objective, facts)})" for objective in objectives]
    return f"one of {', '.join(named[:-1])} and {named[-1]} is better and none is worse"


def _direction(objective: Expression, facts: Facts | None) -> str:
    """Return `higher` or `lower`; `better` if the direction is unknown."""
    if facts is None:
        bounded = isinstance(objective, Call) and objective.function in ("max", "min")
        if not bounded and any(m.metric.text not in (TRAIN_LOSS, VALID_LOSS) for m in measures(objective)):
            return "better"
    try:
        greater = direction_of(objective, facts or _LOSSES)
    except Disagree:
        greater = None
    return "better" if greater is None else "higher" if greater else "lower"

"""Conditions that can also be checked between evaluations, and the moments at which counters can change them.

A condition, or one operand of its `or`, is checked between evaluations if it uses only counters and the clock
(`counted`), or also training losses and metrics (`watched`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from fractions import Fraction

from accmt.rules.cadence import Exact, at_most
from accmt.rules.evaluator import in_counts
from accmt.rules.nodes import Comparison, Counter, Expression, Or, Quantity, walk
from accmt.rules.progress import Length, Progress
from accmt.rules.static_checks import calls_over_time, constant_value, measures
from accmt.rules.store import TRAIN_LOSS

CLOCK_EVERY = 1.0
"""Seconds after which a condition is asked that the clock has a part in, but not by a moment that is known before."""


def counted(condition: Expression) -> Iterator[Expression]:
    """Yield the parts of a condition that use only counters and the clock."""
    return (part for part in _parts(condition) if not any(measures(part)) and not any(calls_over_time(part)))


def watched(condition: Expression, training: Collection[str]) -> Iterator[Expression]:
    """Yield the parts of a condition that use training losses or metrics, and nothing from an evaluation."""
    for part in _parts(condition):
        names = {measure.metric.text for measure in measures(part)}
        if names and names <= {TRAIN_LOSS, *training} and not any(calls_over_time(part)):
            yield part


def asks_for(part: Expression, counter: str) -> bool:
    """Return whether a part of a condition uses a counter."""
    return any(isinstance(node, Counter) and node.name == counter for node in walk(part))


def next_change(part: Expression, now: Progress, length: Length) -> tuple[int | None, float]:
    """Return the first step after now, and the first elapsed time, at which counters can change whether `part` holds.

    None and infinity if they cannot. Ends of epochs and evaluations are left out: conditions are checked there anyway.
    """
    steps, moments = [], [math.inf]
    for node in walk(part):
        if isinstance(node, Comparison) and asks_for(node, "step"):
            steps += _steps(_bound(node, length), now)
        if isinstance(node, Comparison) and asks_for(node, "elapsed"):
            moments += _moments(_bound(node, length), now)
    return min(steps, default=None), min(moments)


def _parts(condition: Expression) -> tuple[Expression, ...]:
    return condition.operands if isinstance(condition, Or) else (condition,)


def _bound(comparison: Comparison, length: Length) -> Exact | None:
    """Return the constant that a counter is compared with; None for any other comparison."""
    for counter, other in ((comparison.left, comparison.right), (comparison.right, comparison.left)):
        if not isinstance(counter, Counter):
            continue
        if isinstance(other, Quantity):
            return in_counts(other, counter, length)
        value = constant_value(other)
        return None if value is None or not math.isfinite(value) else Fraction(value)
    return None


def _steps(bound: Exact | None, now: Progress) -> list[int]:
    if bound is None:
        return [now.step + 1]
    return [step for step in (math.ceil(bound), math.floor(bound) + 1) if step > now.step]


def _moments(bound: Exact | None, now: Progress) -> list[float]:
    if bound is None:
        return [now.elapsed + CLOCK_EVERY]
    moment = at_most(bound)
    if now.elapsed < moment:
        return [moment]
    return [math.nextafter(now.elapsed, math.inf)] if now.elapsed <= bound else []

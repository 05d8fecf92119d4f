"""Evaluates expressions against observed values, with arithmetic that gives the same result on every machine."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from accmt.rules.cadence import Exact, amount, exact
from accmt.rules.nodes import (
    And,
    Call,
    Comparison,
    Counter,
    Everywhere,
    Expression,
    IsNan,
    Measure,
    Not,
    Number,
    Or,
    Product,
    Quantity,
    Sum,
)
from accmt.rules.progress import Length, Progress
from accmt.rules.store import TRAIN_LOSS, MetricsStore
from accmt.rules.units import PERCENT

Value = float | bool

ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Scene:
    """All values that an expression can use.

    Attributes:
        store: The latest values of all metrics.
        progress: The counters.
        length: The length of the training, for percentages.
        train_loss: The mean training loss of the current interval.
        training: Training metric -> its mean in this interval.
        remembered: The current values of the functions over time.
        greater_is_better: Metric -> direction, for `worst`.
    """

    store: MetricsStore
    progress: Progress
    length: Length
    train_loss: float
    remembered: Mapping[Call, Value]
    greater_is_better: Mapping[str, bool | None]
    training: Mapping[str, float] = field(default_factory=dict)


def evaluate_expression(node: Expression, scene: Scene) -> Value:
    """Return the value of a checked expression: a number or a truth value. Metrics never reported are NaN."""
    return _EVALUATE[type(node)](node, scene)


def _measure(node: Measure, scene: Scene) -> float:
    if node.metric.text == TRAIN_LOSS:
        return scene.train_loss
    if node.metric.text in scene.training:
        return scene.training[node.metric.text]
    return mean(_values(node, scene))


def _values(node: Measure, scene: Scene) -> list[float]:
    reported = scene.store.on(node.metric.text)
    if not node.datasets or isinstance(node.datasets[0], Everywhere):
        return list(reported.values())
    return [reported.get(dataset.text, math.nan) for dataset in node.datasets if not isinstance(dataset, Everywhere)]


def _call(node: Call, scene: Scene) -> Value:
    subject = node.arguments[0]
    match node.function:
        case "max" | "min":
            return evaluate_expression(subject, scene)  # type: ignore[arg-type]  # the checker refuses quantities here
        case "mean" | "worst" | "lowest" | "highest" if isinstance(subject, Measure):
            return _over_datasets(node.function, subject, scene)
    return scene.remembered.get(node, math.nan)


def _over_datasets(function: str, measure: Measure, scene: Scene) -> float:
    values = _values(measure, scene)
    if not values or any(map(math.isnan, values)):
        return math.nan
    if function == "mean":
        return mean(values)
    if function == "worst":
        function = "lowest" if scene.greater_is_better[measure.metric.text] else "highest"
    return min(values) if function == "lowest" else max(values)


def _sum(node: Sum, scene: Scene) -> float:
    total = 0.0
    for sign, term in zip(node.signs, node.terms, strict=True):
        total += sign * evaluate_expression(term, scene)
    return total


def _product(node: Product, scene: Scene) -> float:
    return math.prod(evaluate_expression(factor, scene) for factor in node.factors)


def _comparison(node: Comparison, scene: Scene) -> bool:
    left = evaluate_expression(node.left, scene)
    right: Any = (
        in_counts(node.right, node.left, scene.length)
        if isinstance(node.right, Quantity)
        else evaluate_expression(node.right, scene)
    )
    if left != left or right != right:  # NaN compares as false with everything
        return False
    return bool(_OPERATORS[node.operator](left, right))


def in_counts(quantity: Quantity, counter: Expression, length: Length) -> Exact:
    """Convert a quantity to the unit of the counter that it is compared with; exact, as in cadences."""
    if quantity.unit == "epoch":
        return exact(quantity.value)
    count = amount(quantity, length)
    if quantity.unit == PERCENT and isinstance(counter, Counter) and counter.name == "epoch":
        return Fraction(count) / (length.steps_per_epoch or 1)
    return count


_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}

_EVALUATE: dict[type, Callable[[Any, Scene], Value]] = {
    Measure: _measure,
    Number: lambda node, scene: node.value,
    Counter: lambda node, scene: float(getattr(scene.progress, node.name)),
    Call: _call,
    Sum: _sum,
    Product: _product,
    Comparison: _comparison,
    IsNan: lambda node, scene: math.isnan(evaluate_expression(node.score, scene)),
    Not: lambda node, scene: not evaluate_expression(node.operand, scene),
    And: lambda node, scene: all(evaluate_expression(operand, scene) for operand in node.operands),
    Or: lambda node, scene: any(evaluate_expression(operand, scene) for operand in node.operands),
}


def mean(values: Collection[float]) -> float:
    """Return the mean; NaN if empty. Rounded once, so neither the order nor the version of Python affects it."""
    if not values:
        return math.nan
    try:
        return math.fsum(values) / len(values)
    except (OverflowError, ValueError):  # a sum too large for a float, or infinities of both signs
        return sum(values) / len(values)


def exceeds(value: float, other: float, amount: float) -> bool:
    """Return whether two different numbers differ by more than `amount`.

    The difference has to exceed the amount by over 1e-9 of the largest of the three numbers, so that a difference equal
    to the amount does not count, however the numbers were rounded.
    """
    difference = abs(value - other)
    if math.isinf(difference):
        return True
    return difference - amount > ROUNDING * max(abs(value), abs(other), amount)

"""Direction of an expression (is greater better?), from its metrics and the signs of their factors."""

from __future__ import annotations

from accmt.rules.nodes import Call, Counter, Expression, Measure, Node, Product, Sum, walk
from accmt.rules.rule import Facts
from accmt.rules.static_checks import constant_value
from accmt.rules.store import TRAIN_LOSS

DIRECTED = frozenset({"best", "stalled", "worst"})
"""The functions that need to know which way is better."""


class Disagree(Exception):
    """The parts of an expression are better in opposite directions."""

    def __init__(self, higher: str, lower: str) -> None:
        self.higher, self.lower = higher, lower


def direction_of(objective: Expression, facts: Facts) -> bool | None:
    """Return whether greater is better for a whole objective, None if it has no direction.

    Raises:
        Disagree: Its parts are better in opposite directions. The checker rejects such objectives.
    """
    return _direction(objective, facts.greater_is_better)


def _direction(node: Node, greater: dict[str, bool | None]) -> bool | None:
    """Return whether greater is better, from the metrics and the signs of their factors. Raises Disagree."""
    match node:
        case Measure():
            return False if node.metric.text == TRAIN_LOSS else greater.get(node.metric.text)
        case Call(function="max" | "min"):
            varies = any(isinstance(part, Measure | Counter) for part in walk(node))
            return node.function == "max" if varies else None
        case Call():
            return _direction(node.arguments[0], greater)
        case Sum():
            return _agreed(list(zip(node.signs, node.terms, strict=True)), greater)
        case Product():
            constants = [constant_value(factor) for factor in node.factors]
            sign = 1.0
            for value in constants:
                sign *= 1.0 if value is None else value
            measured = [f for f, value in zip(node.factors, constants, strict=True) if value is None]
            agreed = _agreed([(1, factor) for factor in measured], greater)
            return None if agreed is None or sign == 0 else agreed == (sign > 0)
    return None


def _agreed(parts: list[tuple[int, Expression]], greater: dict[str, bool | None]) -> bool | None:
    found: dict[bool, str] = {}
    for sign, part in parts:
        direction = _direction(part, greater)
        if direction is not None:
            found.setdefault(direction == (sign > 0), str(part) if sign > 0 else f"-{part}")
    if len(found) > 1:
        raise Disagree(found[True], found[False])
    return next(iter(found), None)

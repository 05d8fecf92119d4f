"""Constant folding: numbers and truth values of expressions that do not depend on observed values."""

from __future__ import annotations

import math

from accmt.rules.evaluator import Scene, evaluate_expression
from accmt.rules.nodes import (
    And,
    Call,
    Comparison,
    Counter,
    Expression,
    IsNan,
    Measure,
    Not,
    Number,
    Or,
    Product,
    Quantity,
    Sum,
    walk,
)
from accmt.rules.progress import Length, Progress
from accmt.rules.store import MetricsStore

_NOTHING = Scene(MetricsStore(), Progress(), Length(), math.nan, {}, {})


def constant_value(node: Expression) -> float | None:
    """Return the value of an expression of numbers only, None for any other."""
    if isinstance(node, Number | Sum | Product) and _is_constant(node):
        return float(evaluate_expression(node, _NOTHING))
    return None


def truth(condition: Expression) -> bool | None:
    """Return True or False if a condition always has that value, None if it can be both."""
    match condition:
        case Not(operand=operand):
            inner = truth(operand)
            return None if inner is None else not inner
        case And(operands=operands) | Or(operands=operands):
            decisive = isinstance(condition, Or)
            found = {truth(operand) for operand in operands}
            if decisive in found:
                return decisive
            return None if None in found else not decisive
        case Comparison() | IsNan() if _is_constant(condition):
            return bool(evaluate_expression(condition, _NOTHING))
    return None


def _is_constant(node: Expression) -> bool:
    return not any(isinstance(child, Measure | Counter | Call | Quantity) for child in walk(node))

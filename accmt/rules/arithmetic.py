"""Arithmetic that gives the same result on every machine."""

from __future__ import annotations

import math
from collections.abc import Collection

ROUNDING = 1e-9


def mean(values: Collection[float]) -> float:
    """The mean; NaN of nothing. Rounded once, so that it depends on no order and on no version of Python."""
    if not values:
        return math.nan
    try:
        return math.fsum(values) / len(values)
    except (OverflowError, ValueError):  # a sum beyond all floats, or infinities of both signs
        return sum(values) / len(values)


def exceeds(value: float, other: float, amount: float) -> bool:
    """Whether two different numbers are more than an amount apart.

    The difference has to exceed the amount by over 1e-9 of the largest of the three numbers, so that exactly the amount
    is not more, however the numbers were rounded.
    """
    difference = abs(value - other)
    if math.isinf(difference):
        return True
    return difference - amount > ROUNDING * max(abs(value), abs(other), amount)

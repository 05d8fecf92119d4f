"""Arithmetic that gives the same result on every machine."""

from __future__ import annotations

import math
from collections.abc import Collection

ROUNDING = 1e-9


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

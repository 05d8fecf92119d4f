"""Arithmetic that gives the same result on every machine."""

from __future__ import annotations

import math
from collections.abc import Collection


def mean(values: Collection[float]) -> float:
    """The mean; NaN of nothing. Rounded once, so that it depends on no order and on no version of Python."""
    if not values:
        return math.nan
    try:
        return math.fsum(values) / len(values)
    except (OverflowError, ValueError):  # a sum beyond all floats, or infinities of both signs
        return sum(values) / len(values)

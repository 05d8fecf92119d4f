"""Intervals for the difference between the means of two sets of runs. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev, variance

_HALVINGS = 60
_PANELS = 400


@dataclass(frozen=True, slots=True)
class MeanDifference:
    """Difference of two means, first minus second, and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def is_beyond_noise(self) -> bool:
        """True if the interval does not contain 0."""
        return not self.low <= 0 <= self.high


def paired_difference(first: Sequence[float], second: Sequence[float]) -> MeanDifference:
    """Compute Student's paired t interval, from at least two pairs (Student 1908, Biometrika 6(1))."""
    differences = [one - other for one, other in zip(first, second, strict=True)]
    error = stdev(differences) / math.sqrt(len(differences))
    return _around(fmean(differences), error, len(differences) - 1)


def welch_difference(first: Sequence[float], second: Sequence[float]) -> MeanDifference:
    """Compute Welch's t interval, from at least two values each, with the degrees of freedom of Welch and Satterthwaite
    (Welch 1947, Biometrika 34(1/2))."""
    parts = [(variance(values) / len(values), len(values) - 1) for values in (first, second)]
    whole = sum(part for part, _ in parts)
    below = sum(part**2 / freedom for part, freedom in parts)
    freedom = whole**2 / below if below else min(freedom for _, freedom in parts)
    return _around(fmean(first) - fmean(second), math.sqrt(whole), freedom)


def t_quantile(probability: float, freedom: float) -> float:
    """Return the quantile of Student's t distribution, for a probability of at least 0.5, to six digits
    for up to 10,000 degrees of freedom.

    With t = sqrt(freedom) tan(angle), its density becomes a multiple of cos(angle)**(freedom - 1), which is integrated
    by Simpson's rule from 0; the angle is found by bisection.
    """
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    low, high = 0.0, math.pi / 2
    for _ in range(_HALVINGS):
        angle = (low + high) / 2
        width = angle / _PANELS
        heights = [math.cos(width * place) ** (freedom - 1) for place in range(_PANELS + 1)]
        area = width / 3 * (heights[0] + 4 * sum(heights[1::2]) + 2 * sum(heights[2:-1:2]) + heights[-1])
        low, high = (angle, high) if 0.5 + scale * area < probability else (low, angle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _around(mean: float, error: float, freedom: float) -> MeanDifference:
    half = t_quantile(0.975, freedom) * error if error else 0.0
    return MeanDifference(mean, mean - half, mean + half)

"""Standard error of the difference between two models, from their values on the same resamples of a dataset.

The r-th replicates of two models were computed on the same samples, so the spread of their differences is that of the
paired difference (Efron and Tibshirani 1993, chapter 10).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from accmt.rules.evaluator import mean


@dataclass(frozen=True, slots=True)
class PairedError:
    """Standard error of a difference.

    Attributes:
        value: The standard error; NaN if there is none.
        why_none: Why there is none, in words.
    """

    value: float
    why_none: str = ""


def paired_error(new: Sequence[float], old: Sequence[float]) -> PairedError:
    """Return the standard error of new minus old: the standard deviation of the differences of their replicates.

    Pairs whose difference is not finite are left out. If they are more than half, there is no standard error.
    """
    if not new or not old:
        return PairedError(math.nan, "there are no replicates of both")
    if len(new) != len(old):
        return PairedError(math.nan, f"they have {len(new)} and {len(old)} replicates")
    differences = [difference for pair in zip(new, old, strict=True) if math.isfinite(difference := pair[0] - pair[1])]
    count = len(differences)
    if 2 * count < len(new) or count < 2:
        return PairedError(math.nan, f"{len(new) - count} of {len(new)} replicates have no finite difference")
    center = mean(differences)
    return PairedError(math.sqrt(mean([(d - center) * (d - center) for d in differences]) * count / (count - 1)))

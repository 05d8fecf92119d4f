"""Resamples of datasets, by which the error of a value is estimated. Does not import torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

_Array = np.ndarray[Any, Any]
Counts = np.ndarray[Any, np.dtype[np.uint8]]
"""How often each sample is in a resample."""
_MOST_KEPT = 1 << 27


class Draws:
    """Draws of datasets, the same in every evaluation of every training, on any machine.

    Args:
        count: The number of resamples of each dataset.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._kept: dict[tuple[str, int], Counts] = {}

    def of(self, dataset: str, samples: int) -> Iterator[Counts]:
        """Yield the resamples of a dataset, each of as many samples as it has."""
        place = dataset, samples
        if place in self._kept:
            yield from self._kept[place]
        elif sum(kept.size for kept in self._kept.values()) + self.count * samples > _MOST_KEPT:
            yield from self._drawn(dataset, samples)
        else:
            kept = np.empty((self.count, samples), np.uint8)
            for row, counts in zip(kept, self._drawn(dataset, samples), strict=True):
                row[:] = counts
            self._kept[place] = kept
            yield from kept

    def _drawn(self, dataset: str, samples: int) -> Iterator[Counts]:
        text = json.dumps([dataset, samples, self.count])
        bits = np.random.PCG64(int.from_bytes(hashlib.sha256(text.encode()).digest(), "big"))
        for _ in range(self.count):
            # Later versions of NumPy give the same bits, but a Generator may make other numbers of them.
            high = bits.random_raw(samples) >> np.uint64(32)
            indices = (high * np.uint64(samples)) >> np.uint64(32)
            yield np.bincount(indices.view(np.int64), minlength=samples).astype(np.uint8)


def resampled_mean(
    sums: np.ndarray[Any, Any], weights: np.ndarray[Any, Any] | None = None
) -> Callable[[Counts], float]:
    """Return a function of a resample: the mean of scores, each the sum of so many parts as its weight."""
    scores = sums.astype(np.float64)
    parts = None if weights is None else weights.astype(np.float64)

    def mean(counts: Counts) -> float:
        # Not a matrix product, whose rounding depends on the number of threads.
        total = len(counts) if parts is None else (counts * parts).sum()
        return float((counts * scores).sum() / total) if total else math.nan

    return mean


def rounded(value: Any) -> float:
    """Return the value as it is recorded, so that a replay decides the same."""
    return float(f"{float(value.item() if hasattr(value, 'item') else value):.6g}")

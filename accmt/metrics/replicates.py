"""Replicates: values of a metric on resamples of the samples, whose spread is the error of the value (Efron and
Tibshirani 1993, chapter 6). They are computed on the main process, and only where a rule asks for standard errors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from accmt.metrics.join import Arguments, by_path, nested
from accmt.metrics.metric import Metric
from accmt.resampling import Counts, Draws, resampled_mean, rounded


@dataclass(slots=True, eq=False)
class Resampling:
    """Draws for the values of one metric on one dataset, and what was computed from them, on the main process.

    Attributes:
        resamples: The resamples of all datasets.
        dataset: The key of the dataset.
        names: The names of the values that need replicates.
        replicates: Name -> replicates.
        rows: What was resampled: so many samples, or parts of the dataset.
        error: Why the first replicate that is NaN could not be computed.
    """

    resamples: Draws
    dataset: str
    names: frozenset[str]
    replicates: dict[str, tuple[float, ...]] = field(default_factory=dict)
    rows: int = 0
    error: Exception | None = None

    def compute(self, rows: int, values_of: Callable[[Counts], Mapping[str, Any]]) -> None:
        """Compute the replicates by a function of resamples. One that fails is NaN; so are those of a single row, whose
        resamples are all the same."""
        self.rows = rows
        found: list[Mapping[str, float]] = [{}] * self.resamples.count
        if rows > 1:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a resample may lack a class, and the value itself has warned already
                found = [self._tried(values_of, counts) for counts in self.resamples.of(self.dataset, rows)]
        self.replicates = {name: tuple(each.get(name, math.nan) for each in found) for name in self.names}

    def unknown(self) -> list[str]:
        """Return the names of which so many replicates are NaN that they say nothing."""
        half = self.resamples.count / 2
        return sorted(name for name, each in self.replicates.items() if sum(map(math.isnan, each)) > half)

    def _tried(self, values_of: Callable[[Counts], Mapping[str, Any]], counts: Counts) -> dict[str, float]:
        try:
            values = values_of(counts)
            return {name: rounded(values[name]) for name in self.names & values.keys()}
        except Exception as error:
            self.error = self.error or error
            return {}


@dataclass(frozen=True, slots=True)
class Replicated:
    """Values that need replicates.

    Attributes:
        resamples: The resamples of all datasets.
        wanted: Metric -> the datasets on which its replicates are needed.
    """

    resamples: Draws
    wanted: Mapping[str, Collection[str]]

    def on(self, dataset: str, names: Collection[str]) -> Resampling | None:
        """Return the resamples for those of the names that need replicates on a dataset; None if none does."""
        wanted = frozenset(name for name in names if dataset in self.wanted.get(name, ()))
        return Resampling(self.resamples, dataset, wanted) if wanted else None


def replicate(resampling: Resampling, arguments: Arguments, metric: Metric) -> None:
    """Compute the replicates of a metric from its arguments.

    Raises:
        ValueError: Its arguments have different numbers of samples, so that they cannot be resampled together.
    """
    sizes = dict.fromkeys(len(value) for _, value in by_path(arguments))
    if len(sizes) > 1:
        raise ValueError(
            f"metric '{metric.name}' has arguments of {' and '.join(map(str, sizes))} samples, which cannot be "
            f"resampled together, as a rule with 'se' asks: give each argument one row per sample"
        )

    def values_of(counts: Counts) -> Mapping[str, Any]:
        rows = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
        return metric.compute(*nested({path: value[rows] for path, value in by_path(arguments)}))

    resampling.compute(next(iter(sizes), 0), values_of)


def replicate_means(resampling: Resampling, gathered: Arguments | None) -> None:
    """Compute the replicates of means from name -> (scores, and their weights if they have any); None for no replicates
    on this process."""
    if gathered is None:
        return
    [scores] = gathered
    means = {name: _mean(*parts.values()) for name, parts in scores.items()}
    samples = next((len(parts[0]) for parts in scores.values()), 0)
    resampling.compute(samples, lambda counts: {name: mean(counts) for name, mean in means.items()})


def copied(arguments: Arguments) -> Arguments:
    return nested({path: value.clone() for path, value in by_path(arguments)})


def _mean(sums: Tensor, weights: Tensor | None = None) -> Callable[[Counts], float]:
    return resampled_mean(sums.numpy(), None if weights is None else weights.numpy())

"""Trainings that differ only by their seeds, drawn as one: the mean line, in a band from the lowest to the highest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from accmt.report.training import Curve, TrainingReport

_OF_A_SEED = ("seed", "model_path", "track_name")


def differ_by_seed(trainings: Sequence[TrainingReport]) -> bool:
    """Return whether these are several trainings with the same settings, each with another seed."""
    seeds = {training.settings.get("seed") for training in trainings}
    rest = [{name: text for name, text in one.settings.items() if name not in _OF_A_SEED} for one in trainings]
    return len(trainings) > 1 and len(seeds) == len(trainings) and all(one and one == rest[0] for one in rest)


def bands_of(trainings: Sequence[TrainingReport], metric: str) -> list[tuple[Curve, Curve, Curve]]:
    """Return the lowest, mean and highest values for each dataset, at the steps that at least two trainings have."""
    values: dict[str, dict[int, list[float]]] = {}
    for training in trainings:
        for curve in training.curves:
            if curve.metric == metric:
                points = values.setdefault(curve.dataset, {})
                for step, value in zip(curve.steps, curve.values, strict=True):
                    points.setdefault(step, []).append(value)
    return [_band(metric, dataset, points) for dataset, points in values.items()]


def _band(metric: str, dataset: str, points: dict[int, list[float]]) -> tuple[Curve, Curve, Curve]:
    finite = {step: list(filter(math.isfinite, values)) for step, values in sorted(points.items())}
    kept = {step: values for step, values in finite.items() if len(values) > 1}
    lowest, mean, highest = (
        Curve(metric, dataset, tuple(kept), tuple(map(of, kept.values()))) for of in (min, _mean, max)
    )
    return lowest, mean, highest


def _mean(values: Sequence[float]) -> float:
    return fmean(value / len(values) for value in values) * len(values)  # the sum of large values would overflow

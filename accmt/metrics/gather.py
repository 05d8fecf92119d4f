"""Gatherers, which collect the arguments of one metric over one dataset and turn them into values.

Each process keeps its own batches. At the end of the dataset the main process gathers the others' batches, once, and
sorts all into the order of the dataset, so that a value does not depend on the number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from accmt.distributed.collective import from_each
from accmt.metrics.join import Arguments, Batch, by_path, joined, joined_from_all
from accmt.metrics.metric import Metric, MetricParallel
from accmt.metrics.torchmetrics import TorchMetric


class Gatherer(Protocol):
    """Collects batches of one metric over one dataset."""

    def add(self, arguments: Arguments) -> None: ...

    def values(self) -> Mapping[str, Any] | None:
        """Return the values, at least on the main process; None elsewhere. Called once on every process."""


def gatherer_of(metric: Metric, device: torch.device) -> Gatherer:
    """Return the gatherer that a metric needs."""
    if isinstance(metric, TorchMetric):
        return _TorchmetricsGatherer(metric, device)
    if isinstance(metric, MetricParallel):
        return _ParallelGatherer(metric)
    return _MainGatherer(metric)


class _KeptBatches:
    """Copies of the arguments of a metric."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._batches: list[Batch] = []

    def add(self, arguments: Arguments) -> None:
        self._batches.append(_kept(arguments, self._metric))

    def _taken(self) -> list[Batch]:
        batches, self._batches = self._batches, []
        return batches


class _MainGatherer(_KeptBatches):
    """For `Metric`: gathers everything on the main process."""

    def values(self) -> Mapping[str, Any] | None:
        arguments = joined_from_all(self._taken(), self._metric)
        return None if arguments is None else self._metric.compute(*arguments)


class _ParallelGatherer(_KeptBatches):
    """For `MetricParallel`: averages the values of the processes, weighted by their number of samples."""

    def values(self) -> Mapping[str, Any] | None:
        shares = [share for share in from_each(self._share) if share[0]]
        total = sum(count for count, _ in shares)
        if total == 0:
            return {}
        return {key: sum(count * values[key] for count, values in shares) / total for key in shares[0][1]}

    def _share(self) -> tuple[int, Mapping[str, float]]:
        """Return the number of samples of this process and the values of the metric over them."""
        batches = self._taken()
        samples = sum(len(next(iter(batch.values()), ())) for batch in batches)
        own = self._metric.compute(*joined(batches, self._metric)) if samples else {}
        return samples, {key: float(value.item() if hasattr(value, "item") else value) for key, value in own.items()}


class _TorchmetricsGatherer:
    """For torchmetrics objects: the state is updated here and synchronized by the object itself."""

    def __init__(self, metric: TorchMetric, device: torch.device) -> None:
        self._metric = metric
        metric.metric.to(device)
        metric.metric.reset()

    def add(self, arguments: Arguments) -> None:
        self._metric.metric.update(*arguments)

    def values(self) -> Mapping[str, Any] | None:
        values = self._metric.values()
        self._metric.metric.reset()
        return values


def _kept(arguments: Arguments, metric: Metric) -> Batch:
    """Copy the arguments of a batch to keep them: detached, cast, in main memory, safe from later changes."""
    batch = {}
    for path, value in by_path(arguments):
        tensor = value if isinstance(value, Tensor) else _as_tensor(value, metric)
        batch[path] = tensor.detach().to("cpu", metric.kept_as(tensor.dtype), copy=True)
    if metric.do_checks:
        _check([tuple(tensor.shape) for tensor in batch.values()], metric)
    return batch


def _as_tensor(argument: Any, metric: Metric) -> Tensor:
    try:
        tensor = torch.as_tensor(argument)
        # Python's floats have double precision, and torch would convert them to single precision.
        is_narrowed = isinstance(argument, float | list | tuple) and tensor.is_floating_point()
        return torch.as_tensor(argument, dtype=torch.float64) if is_narrowed else tensor
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"metric '{metric.name}' was given a {type(argument).__name__} that is not a tensor: {error}; "
            f"give tensors, or dictionaries of tensors"
        ) from None


def _check(shapes: Sequence[tuple[int, ...]], metric: Metric) -> None:
    if any(not shape for shape in shapes):
        raise ValueError(
            f"metric '{metric.name}' was given a tensor without dimensions: "
            f"the first dimension is the samples of the batch"
        )
    if len({shape[0] for shape in shapes}) > 1:
        listed = ", ".join(map(str, shapes))
        raise ValueError(f"metric '{metric.name}' was given different numbers of samples in one batch: shapes {listed}")

"""Gatherers, which collect the arguments of one metric over one dataset and turn them into values.

Each process keeps its own batches. At the end of the dataset the main process gathers the others' batches, once, and
sorts all into the order of the dataset, so that a value does not depend on the number of processes. With a `Resampling`
it computes replicates of the values too.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor

from accmt.distributed.collective import from_each
from accmt.metrics.join import Arguments, Batch, Blocks, Path, by_path, joined, joined_from_all, nested
from accmt.metrics.metric import Metric, MetricParallel
from accmt.metrics.replicates import Resampling, copied, replicate, replicate_means
from accmt.metrics.torchmetrics import TorchMetric

_T = TypeVar("_T")


class Gatherer(Protocol):
    """Collects batches of one metric over one dataset."""

    def add(self, arguments: Arguments) -> None: ...

    def values(self) -> Mapping[str, Any] | None:
        """Return the values, at least on the main process; None elsewhere. Called once on every process."""


def gatherer_of(
    metric: Metric, device: torch.device, batches: int | None = None, resampling: Resampling | None = None
) -> Gatherer:
    """Return the gatherer that a metric needs.

    Args:
        metric: The metric.
        device: The device of this process.
        batches: The number of batches of this process, if it is known.
        resampling: The replicates to compute with the values, on the main process; None for none.
    """
    alone = batches if PartialState().num_processes == 1 else None
    if metric.per_sample:
        return _SampleGatherer(metric, resampling)
    if isinstance(metric, TorchMetric):
        if resampling is not None:
            return _TorchmetricsReplicator(metric, device, alone, resampling)
        return _TorchmetricsGatherer(metric, device)
    if isinstance(metric, MetricParallel):
        return _ParallelGatherer(metric, batches)
    return _MainGatherer(metric, alone, resampling)


class _KeptBatches:
    """Copies of the arguments of a metric: detached, cast, in main memory, safe from later changes."""

    def __init__(self, metric: Metric, batches: int | None) -> None:
        self._metric = metric
        self._batches: list[Batch] = []
        self._blocks = None if batches is None or metric.pad is not None else Blocks(batches)
        self._copied = _copied if self._blocks is None else self._blocks.copied

    def add(self, arguments: Arguments) -> None:
        self._batches.append(_tensors(arguments, self._metric, self._copied))

    def _joined(self, join: Callable[[list[Batch], Metric], _T]) -> Arguments | _T:
        """Return the arguments over all batches, joined by a function if they are not in one block. Keeps nothing."""
        batches, self._batches = self._batches, []
        blocks, self._blocks, self._copied = self._blocks, None, _copied
        whole = None if blocks is None else blocks.joined(len(batches))
        return join(batches, self._metric) if whole is None else whole


class _MainGatherer(_KeptBatches):
    """For `Metric`: gathers everything on the main process."""

    def __init__(self, metric: Metric, batches: int | None, resampling: Resampling | None) -> None:
        super().__init__(metric, batches)
        self._resampling = resampling

    def values(self) -> Mapping[str, Any] | None:
        arguments = self._joined(joined_from_all)
        if arguments is None or self._resampling is None:
            return None if arguments is None else self._metric.compute(*arguments)
        values = self._metric.compute(*copied(arguments))  # it may change its arguments
        replicate(self._resampling, arguments, self._metric)
        return values


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
        samples = sum(len(next(iter(batch.values()), ())) for batch in self._batches)
        own = self._metric.compute(*self._joined(joined)) if samples else {}
        return samples, {key: float(value.item() if hasattr(value, "item") else value) for key, value in own.items()}


class _SampleGatherer:
    """For metrics with a score per sample: each process sums its own on the device; only sums are exchanged."""

    def __init__(self, metric: Metric, resampling: Resampling | None) -> None:
        self._metric = metric
        self._sums: dict[str, tuple[Any, Any]] = {}  # of the scores, and of their weights
        self._resampling = resampling
        self._scores: list[Batch] = []

    def add(self, arguments: Arguments) -> None:
        tensors = _tensors(arguments, self._metric, _cast)
        samples = next((tensor.shape[0] for tensor in tensors.values()), 0)
        computed = self._metric.compute(*nested(tensors))
        former = self._sums or dict.fromkeys(computed, (0, 0))
        if computed.keys() != former.keys():
            names = " and ".join(str([*each]) for each in (former, computed))
            raise ValueError(f"the scores of metric '{self._metric.name}' have other names in each batch: {names}")
        for name, given in computed.items():
            total, weight = former[name]
            scores, weights = _parts(given)
            added = samples if weights is None else self._summed(weights, name, samples)
            self._sums[name] = total + self._summed(scores, name, samples), weight + added
        if self._resampling is not None:
            kept = {name: dict(enumerate(_parts(computed[name]))) for name in self._resampling.names & computed.keys()}
            self._scores.append(
                {path: torch.as_tensor(each).clone() for path, each in by_path((kept,)) if each is not None}
            )

    def values(self) -> Mapping[str, Any] | None:
        own = {name: (float(total), float(weight)) for name, (total, weight) in self._sums.items()}
        shares = [share for share in from_each(lambda: own) if share]
        if not shares:
            raise ValueError(f"metric '{self._metric.name}' got no samples")
        if self._resampling is not None:
            replicate_means(self._resampling, joined_from_all(self._scores, self._metric))
        sums = {name: map(sum, zip(*(share[name] for share in shares), strict=True)) for name in shares[0]}
        return {name: total / weight if weight else math.nan for name, (total, weight) in sums.items()}

    def _summed(self, scores: Any, name: str, samples: int) -> Tensor | float:
        shape = tuple(getattr(scores, "shape", ()))
        if not isinstance(scores, Tensor | np.ndarray) or shape != (samples,):
            raise TypeError(
                f"metric '{self._metric.name}' has per_sample=True and computed '{name}' of {samples} samples as a "
                f"{type(scores).__name__} of shape {shape}: it must be a tensor of shape ({samples},), a score each"
            )
        tensor = torch.as_tensor(scores)
        dtype = torch.float32 if tensor.device.type == "mps" else torch.float64
        total = tensor.count_nonzero() if tensor.dtype is torch.bool else tensor.sum(dtype=dtype)
        return total.item() if tensor.device.type == "cpu" else total  # numbers add faster, and the CPU need not wait


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


class _TorchmetricsReplicator(_KeptBatches):
    """For torchmetrics objects with replicates: the arguments are gathered too, and resampled by a copy of the object,
    which synchronizes nothing."""

    def __init__(self, metric: TorchMetric, device: torch.device, batches: int | None, resampling: Resampling) -> None:
        super().__init__(metric, batches)
        self._whole = _TorchmetricsGatherer(metric, device)
        self._copy, self._resampling = copy.copy(metric), resampling

    def add(self, arguments: Arguments) -> None:
        try:
            super().add(arguments)
        except TypeError as error:
            error.add_note("a rule asks for standard errors of it, for which its arguments are resampled")
            raise
        self._whole.add(arguments)

    def values(self) -> Mapping[str, Any] | None:
        values = self._whole.values()
        arguments = self._joined(joined_from_all)
        if arguments is not None:
            self._copy.metric = copy.deepcopy(self._copy.metric).cpu()
            for part in self._copy.metric.modules():
                part.distributed_available_fn = bool
            replicate(self._resampling, arguments, self._copy)
        return values


def _parts(given: Any) -> tuple[Any, Any | None]:
    """Return the scores of samples, and their weights if they are given."""
    return given if isinstance(given, tuple) and len(given) == 2 else (given, None)


def _copied(path: Path, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to("cpu", dtype, copy=True)


def _cast(path: Path, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype)


def _tensors(arguments: Arguments, metric: Metric, cast: Callable[[Path, Tensor, torch.dtype], Tensor]) -> Batch:
    """Return the arguments of a batch as tensors: detached, and cast by a function to the dtype for the metric."""
    batch = {}
    for path, value in by_path(arguments):
        tensor = value if isinstance(value, Tensor) else _as_tensor(value, metric)
        tensor = tensor.detach() if tensor.requires_grad else tensor  # faster than always
        batch[path] = cast(path, tensor, metric.kept_as(tensor.dtype))
    if metric.do_checks:
        _check([tensor.shape for tensor in batch.values()], metric)
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


def _check(shapes: Sequence[torch.Size], metric: Metric) -> None:
    if not all(shapes):
        raise ValueError(
            f"metric '{metric.name}' was given a tensor without dimensions: "
            f"the first dimension is the samples of the batch"
        )
    if len({shape[0] for shape in shapes}) > 1:
        listed = ", ".join(str(tuple(shape)) for shape in shapes)
        raise ValueError(f"metric '{metric.name}' was given different numbers of samples in one batch: shapes {listed}")

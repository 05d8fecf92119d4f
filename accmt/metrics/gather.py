"""Gatherers: they collect the arguments of one metric over one dataset and turn them into values.

Each process keeps its own batches. At the end of the dataset the main process gets those of the others, once, and puts
all batches into the order of the dataset, so that a value does not depend on the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch import distributed as dist

from accmt.metrics.metric import Metric, MetricParallel
from accmt.metrics.torchmetrics import TorchMetric

Arguments = tuple[Any, ...]
_T = TypeVar("_T")


class FailedElsewhere(RuntimeError):
    """A metric could not be computed on another process, which has the error."""


class Gatherer(Protocol):
    """Collects batches of one metric over one dataset."""

    def add(self, arguments: Arguments) -> None: ...

    def values(self) -> Mapping[str, Any] | None:
        """The values of the metric, on the main process at least; None elsewhere. Called once, on every process."""


def gatherer_of(metric: Metric, device: torch.device) -> Gatherer:
    """The gatherer that a metric needs."""
    if isinstance(metric, TorchMetric):
        return _TorchmetricsGatherer(metric, device)
    if isinstance(metric, MetricParallel):
        return _ParallelGatherer(metric)
    return _MainGatherer(metric)


class _MainGatherer:
    """For `Metric`: everything to the main process."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._batches: list[Arguments] = []

    def add(self, arguments: Arguments) -> None:
        self._batches.append(_kept(arguments, self._metric))

    def values(self) -> Mapping[str, Any] | None:
        batches = _collected(self._batches)
        self._batches = []
        if batches is None:
            return None
        return self._metric.compute(*_joined(batches, self._metric))


class _ParallelGatherer:
    """For `MetricParallel`: values of each process, averaged by their number of samples."""

    def __init__(self, metric: MetricParallel) -> None:
        self._metric = metric
        self._batches: list[Arguments] = []

    def add(self, arguments: Arguments) -> None:
        self._batches.append(_kept(arguments, self._metric))

    def values(self) -> Mapping[str, Any] | None:
        shares = [share for share in _from_all(self._share) if share[0]]
        total = sum(count for count, _ in shares)
        if total == 0:
            return {}
        return {key: sum(count * values[key] for count, values in shares) / total for key in shares[0][1]}

    def _share(self) -> tuple[int, Mapping[str, float]]:
        """The samples of this process and the values of the metric over them."""
        batches, self._batches = self._batches, []
        samples = sum(_samples(batch) for batch in batches)
        own = self._metric.compute(*_joined(batches, self._metric)) if samples else {}
        return samples, {key: float(value.item() if hasattr(value, "item") else value) for key, value in own.items()}


class _TorchmetricsGatherer:
    """For torchmetrics objects: the state is updated here and synchronised by the object itself."""

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


def _kept(arguments: Arguments, metric: Metric) -> Arguments:
    """The arguments of a batch as they are kept: detached, cast, in main memory, copies that nobody else can change."""

    def keep(argument: Any) -> Any:
        if isinstance(argument, Mapping):
            return {key: keep(value) for key, value in argument.items()}
        if not isinstance(argument, Tensor):
            argument = _as_tensor(argument, metric)
        casts = metric.cast is not None and argument.is_floating_point()
        return argument.detach().to("cpu", metric.cast if casts else argument.dtype, copy=True)

    kept = tuple(keep(argument) for argument in arguments)
    if metric.do_checks:
        _check(kept, metric)
    return kept


def _as_tensor(argument: Any, metric: Metric) -> Tensor:
    try:
        return torch.as_tensor(argument)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"metric '{metric.name}' was given a {type(argument).__name__} that is no tensor: {error}; "
            f"give tensors, or dictionaries of tensors"
        ) from None


def _check(arguments: Arguments, metric: Metric) -> None:
    shapes = [tuple(tensor.shape) for tensor in _tensors(arguments)]
    if any(not shape for shape in shapes):
        raise ValueError(
            f"metric '{metric.name}' was given a tensor without dimensions: "
            f"the first dimension is the samples of the batch"
        )
    if len({shape[0] for shape in shapes}) > 1:
        listed = ", ".join(map(str, shapes))
        raise ValueError(f"metric '{metric.name}' was given different numbers of samples in one batch: shapes {listed}")


def _tensors(arguments: Sequence[Any]) -> list[Tensor]:
    tensors: list[Tensor] = []
    for argument in arguments:
        tensors += _tensors(list(argument.values())) if isinstance(argument, Mapping) else [argument]
    return tensors


def _samples(arguments: Arguments) -> int:
    tensors = _tensors(arguments)
    return len(tensors[0]) if tensors else 0


def _joined(batches: Sequence[Arguments], metric: Metric) -> Arguments:
    """One tensor for each argument, of all batches."""

    def join(parts: list[Any]) -> Any:
        if len({_keys(part) for part in parts}) > 1:
            raise ValueError(f"the batches of metric '{metric.name}' differ in the keys of their arguments")
        if isinstance(parts[0], Mapping):
            return {key: join([part[key] for part in parts]) for key in parts[0]}
        if len({part.dim() for part in parts}) == 1 and metric.pad is not None:
            parts = _filled_up(parts, metric.pad)
        trailing = {tuple(part.shape[1:]) for part in parts}
        if len(trailing) > 1:
            shapes = ", ".join(str(tuple(part.shape)) for part in parts[:3])
            raise ValueError(
                f"the batches of metric '{metric.name}' differ in more than their number of samples: {shapes}, ...; "
                f"give the metric a number to fill them up with (pad=...), or pad them in validation_step"
            )
        return torch.cat(parts)

    if not batches:
        raise ValueError(f"metric '{metric.name}' got no samples")
    if len(set(map(len, batches))) > 1:
        raise ValueError(f"the batches of metric '{metric.name}' differ in their number of arguments")
    return tuple(join([batch[position] for batch in batches]) for position in range(len(batches[0])))


def _filled_up(parts: Sequence[Tensor], value: float) -> list[Tensor]:
    """Tensors whose dimensions but the first are as long as the longest of them all."""
    lengths = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    missing = [[length - size for length, size in zip(lengths, part.shape[1:], strict=True)] for part in parts]
    # torch pads the last dimension first, each at its start and at its end.
    ends = [[place for length in reversed(lacks) for place in (0, length)] for lacks in missing]
    return [
        nn.functional.pad(part, end, value=value) if any(end) else part for part, end in zip(parts, ends, strict=True)
    ]


def _keys(argument: Any) -> frozenset[Any] | None:
    return frozenset(argument) if isinstance(argument, Mapping) else None


def _from_all(action: Callable[[], _T]) -> list[_T]:
    """The results of an action on all processes. If it fails on one, it fails on all, and none is left waiting."""
    processes = PartialState().num_processes
    if processes == 1:
        return [action()]
    result: Any = None
    error: Exception | None = None
    try:
        result = action()
    except Exception as raised:
        error = raised
    gathered: list[Any] = [None] * processes
    dist.all_gather_object(gathered, (result, None if error is None else f"{type(error).__name__}: {error}"))
    if error is not None:
        raise error
    for rank, (_, text) in enumerate(gathered):
        if text is not None:
            raise FailedElsewhere(f"it failed on process {rank}: {text}")
    return [value for value, _ in gathered]


def _collected(batches: list[Arguments]) -> list[Arguments] | None:
    """The batches of all processes in the order of the dataset, on the main process; None elsewhere.

    Process p of n has the batches p, p+n, p+2n, ... They are sent from process to process, once a dataset, so nobody
    but the main process ever holds what is not its own.
    """
    state = PartialState()
    if state.num_processes == 1:
        return batches
    device = state.device if state.device.type == "cuda" else torch.device("cpu")
    shares: list[Any] = [None] * state.num_processes if state.is_main_process else []
    described = [_described(batch) for batch in batches]
    dist.gather_object(described, shares if state.is_main_process else None, dst=0)
    if not state.is_main_process:
        for tensor in (tensor for batch in batches for tensor in _tensors(batch)):
            if tensor.numel():
                dist.send(tensor.contiguous().to(device), dst=0)
        return None
    received: list[list[Arguments]] = [batches]
    for rank in range(1, state.num_processes):
        received.append([_received(description, rank, device) for description in shares[rank]])
    ordered: list[Arguments] = []
    for turn in range(max(map(len, received))):
        ordered += [share[turn] for share in received if turn < len(share)]
    return ordered


def _described(arguments: Sequence[Any]) -> list[Any]:
    """Shapes and dtypes in the place of tensors."""
    return [
        {key: _described([value])[0] for key, value in argument.items()}
        if isinstance(argument, Mapping)
        else (tuple(argument.shape), argument.dtype)
        for argument in arguments
    ]


def _received(description: list[Any], rank: int, device: torch.device) -> Arguments:
    def receive(entry: Any) -> Any:
        if isinstance(entry, Mapping):
            return {key: receive(value) for key, value in entry.items()}
        shape, dtype = entry
        tensor = torch.empty(shape, dtype=dtype, device=device)
        if tensor.numel():
            dist.recv(tensor, src=rank)
        return tensor.cpu()

    return tuple(receive(entry) for entry in description)

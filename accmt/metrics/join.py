"""Concatenates batches: one tensor for each argument of a metric, over all batches of a dataset.

The tensors are allocated first, from the shapes of all batches, and every batch is copied or received into its place.
So no batch is held twice: joining takes little more memory than the batches themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from itertools import accumulate
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from torch import distributed as dist

from accmt.distributed.collective import agreed
from accmt.metrics.metric import Metric

Arguments = tuple[Any, ...]
Path = tuple[Any, ...]
"""The place of a tensor in arguments: the index of its argument, then the keys of dictionaries."""
Batch = dict[Path, Tensor]


def by_path(arguments: Mapping[Any, Any] | Sequence[Any], way: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield what arguments hold outside of dictionaries, in order, each with its path."""
    for key, value in arguments.items() if isinstance(arguments, Mapping) else enumerate(arguments):
        if not isinstance(value, Tensor) and isinstance(value, Mapping) and value:
            yield from by_path(value, (*way, key))
        else:
            yield (*way, key), value


def nested(values: Mapping[Path, Any]) -> Arguments:
    """Return the arguments that hold these values."""
    whole: dict[Any, Any] = {}
    for (*way, last), value in values.items():
        place = whole
        for key in way:
            place = place.setdefault(key, {})
        place[last] = value
    return tuple(whole.values())


class Blocks:
    """One tensor for each argument, in which every batch gets its place when it is kept: joining copies nothing then.

    Main memory is taken page by page, as the tensors are filled.

    Args:
        batches: The number of batches, each of at most as many samples as the first; others get no place.
    """

    def __init__(self, batches: int) -> None:
        self._batches = batches
        self._blocks: dict[Path, list[Any]] = {}  # a tensor, and how many samples and batches it holds

    def copied(self, path: Path, part: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a copy in main memory, in its place if it has one."""
        shape = part.shape or (0,)
        if path not in self._blocks:
            self._blocks[path] = [torch.empty((self._batches * shape[0], *shape[1:]), dtype=dtype), 0, 0]
        room, start, batches = block = self._blocks[path]
        end, whole = start + shape[0], room.shape
        if not part.ndim or end > whole[0] or shape[1:] != whole[1:] or dtype != room.dtype:
            return part.to("cpu", dtype, copy=True)
        block[1:] = end, batches + 1
        place: Tensor = room[start:end]
        return place.copy_(part)

    def joined(self, batches: int) -> Arguments | None:
        """Return the arguments over all batches; None if some got no place."""
        if not batches or any(held != batches for *_, held in self._blocks.values()):
            return None
        return nested({path: room[:filled] for path, (room, filled, _) in self._blocks.items()})


def joined(batches: list[Batch], metric: Metric) -> Arguments:
    """Join the arguments of a metric over batches of this process. Empties the list, to free memory.

    Raises:
        ValueError: There are no batches, or they do not fit together.
    """
    room = _room([_described(batch) for batch in batches], metric)
    _fill(room, range(len(batches)), batches)
    return nested({path: slot.tensor for path, slot in room.items()})


def joined_from_all(batches: list[Batch], metric: Metric) -> Arguments | None:
    """Join the batches of all processes, in the order of the dataset, on the main process; return None elsewhere.

    Process p of n has the batches p, p+n, p+2n, ... They are sent point to point, once per dataset, so only the main
    process ever holds batches of other processes.
    """
    state = PartialState()
    if state.num_processes == 1:
        return joined(batches, metric)
    device = state.device if state.device.type == "cuda" else torch.device("cpu")
    shares: list[Any] | None = [None] * state.num_processes if state.is_main_process else None
    dist.gather_object([_described(batch) for batch in batches], shares, dst=0)
    if shares is None:
        if agreed(False):
            _send(batches, device)
        return None
    turns = sorted((turn, rank) for rank, share in enumerate(shares) for turn in range(len(share)))
    room: dict[Path, _Slot] = {}
    try:
        room = _room([shares[rank][turn] for turn, rank in turns], metric)
    finally:
        agreed(bool(room))  # the others send their batches only if there is room for them
    places = {turn: place for place, turn in enumerate(turns)}
    _fill(room, [places[turn, 0] for turn in range(len(batches))], batches)
    for rank, share in enumerate(shares[1:], 1):
        for turn, described in enumerate(share):
            for path, (shape, dtype) in described.items():
                room[path].receive(places[turn, rank], shape, dtype, rank, device)
    return nested({path: slot.tensor for path, slot in room.items()})


class _Slot:
    """The tensor of one argument, in which each batch has its place. Smaller batches are padded."""

    def __init__(self, parts: Sequence[tuple[torch.Size, torch.dtype]], metric: Metric) -> None:
        shapes = [shape for shape, _ in parts]
        if not all(shapes):
            raise ValueError(f"metric '{metric.name}' was given a tensor without dimensions")
        is_even = len({shape[1:] for shape in shapes}) == 1
        if not is_even and (metric.pad is None or len(set(map(len, shapes))) > 1):
            listed = ", ".join(str(tuple(shape)) for shape in shapes[:3])
            raise ValueError(
                f"the batches of metric '{metric.name}' differ in more than their number of samples: {listed}, ...; "
                f"give the metric a number to fill them up with (pad=...), or pad them in validation_step"
            )
        self._starts = list(accumulate((shape[0] for shape in shapes), initial=0))
        whole = (self._starts[-1], *map(max, zip(*(shape[1:] for shape in shapes), strict=True)))
        dtype = reduce(_common_dtype, (dtype for _, dtype in parts))
        self.tensor = torch.empty(whole, dtype=dtype)
        if not is_even and metric.pad is not None:
            self.tensor.fill_(metric.pad)

    def put(self, place: int, part: Tensor) -> None:
        self._part(place, part.shape).copy_(part)

    def receive(self, place: int, shape: torch.Size, dtype: torch.dtype, rank: int, device: torch.device) -> None:
        part = self._part(place, shape)
        if not part.numel():
            return
        if part.is_contiguous() and (dtype, device) == (part.dtype, part.device):
            dist.recv(part, src=rank)
            return
        received = torch.empty(shape, dtype=dtype, device=device)
        dist.recv(received, src=rank)
        part.copy_(received)

    def _part(self, place: int, shape: torch.Size) -> Tensor:
        part = self.tensor[self._starts[place] : self._starts[place + 1]]
        for dimension, size in enumerate(shape[1:], 1):
            part = part.narrow(dimension, 0, size)
        return part


def _common_dtype(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    """Return the common dtype of two dtypes: for integers with floats double precision, where torch takes single."""
    common = torch.promote_types(one, other)
    if common.is_floating_point and one.is_floating_point != other.is_floating_point and torch.bool not in (one, other):
        return torch.promote_types(common, torch.float64)
    return common


def _room(descriptions: Sequence[Mapping[Path, Any]], metric: Metric) -> dict[Path, _Slot]:
    """Return a slot for each tensor of the described batches."""
    if not descriptions:
        raise ValueError(f"metric '{metric.name}' got no samples")
    if len({len({path[0] for path in described}) for described in descriptions}) > 1:
        raise ValueError(f"the batches of metric '{metric.name}' differ in their number of arguments")
    if len(set(map(frozenset, descriptions))) > 1:
        raise ValueError(f"the batches of metric '{metric.name}' differ in the keys of their arguments")
    return {path: _Slot([described[path] for described in descriptions], metric) for path in descriptions[0]}


def _described(batch: Batch) -> dict[Path, tuple[torch.Size, torch.dtype]]:
    return {path: (tensor.shape, tensor.dtype) for path, tensor in batch.items()}


def _fill(room: Mapping[Path, _Slot], places: Sequence[int], batches: list[Batch]) -> None:
    """Copy batches into their places, and free each one immediately."""
    for turn, place in enumerate(places):
        batch, batches[turn] = batches[turn], {}
        for path, tensor in batch.items():
            room[path].put(place, tensor)


def _send(batches: Sequence[Batch], device: torch.device) -> None:
    for tensor in (tensor for batch in batches for tensor in batch.values() if tensor.numel()):
        dist.send(tensor.contiguous().to(device), dst=0)

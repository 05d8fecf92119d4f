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


def tensors(arguments: Sequence[Any]) -> list[Tensor]:
    """Return the tensors of arguments, in order."""
    found: list[Tensor] = []
    for argument in arguments:
        found += tensors(list(argument.values())) if isinstance(argument, Mapping) else [argument]
    return found


def joined(batches: list[Arguments], metric: Metric) -> Arguments:
    """Join the arguments of a metric over batches of this process. Empties the list, to free memory.

    Raises:
        ValueError: There are no batches, or they do not fit together.
    """
    room = _room([_described(batch) for batch in batches], metric)
    _fill(room, range(len(batches)), batches)
    return tuple(map(_content, room))


def joined_from_all(batches: list[Arguments], metric: Metric) -> Arguments | None:
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
    room: tuple[Any, ...] | None = None
    try:
        room = _room([shares[rank][turn] for turn, rank in turns], metric)
    finally:
        agreed(room is not None)  # the others send their batches only if there is room for them
    places = {turn: place for place, turn in enumerate(turns)}
    _fill(room, [places[turn, 0] for turn in range(len(batches))], batches)
    for rank, share in enumerate(shares[1:], 1):
        for turn, described in enumerate(share):
            for slot, (shape, dtype) in _pairs(room, described):
                slot.receive(places[turn, rank], shape, dtype, rank, device)
    return tuple(map(_content, room))


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


def _room(descriptions: Sequence[Sequence[Any]], metric: Metric) -> tuple[Any, ...]:
    """Return the structure of the described arguments, with a slot in place of each tensor."""

    def join(parts: list[Any]) -> Any:
        if len({frozenset(part) if isinstance(part, Mapping) else None for part in parts}) > 1:
            raise ValueError(f"the batches of metric '{metric.name}' differ in the keys of their arguments")
        if isinstance(parts[0], Mapping):
            return {key: join([part[key] for part in parts]) for key in parts[0]}
        return _Slot(parts, metric)

    if not descriptions:
        raise ValueError(f"metric '{metric.name}' got no samples")
    if len(set(map(len, descriptions))) > 1:
        raise ValueError(f"the batches of metric '{metric.name}' differ in their number of arguments")
    return tuple(join(list(parts)) for parts in zip(*descriptions, strict=True))


def _described(arguments: Sequence[Any]) -> list[Any]:
    """Return arguments with shapes and dtypes in place of tensors."""
    return [
        dict(zip(argument, _described(list(argument.values())), strict=True))
        if isinstance(argument, Mapping)
        else (argument.shape, argument.dtype)
        for argument in arguments
    ]


def _fill(room: Sequence[Any], places: Sequence[int], batches: list[Arguments]) -> None:
    """Copy batches into their places, and free each one immediately."""
    for turn, place in enumerate(places):
        batch, batches[turn] = batches[turn], ()
        for slot, tensor in _pairs(room, batch):
            slot.put(place, tensor)


def _pairs(room: Sequence[Any], arguments: Sequence[Any]) -> Iterator[tuple[_Slot, Any]]:
    """Yield each tensor in arguments with its slot, in order."""
    for slot, argument in zip(room, arguments, strict=True):
        if isinstance(argument, Mapping):
            yield from _pairs([slot[key] for key in argument], list(argument.values()))
        else:
            yield slot, argument


def _content(room: _Slot | Mapping[str, Any]) -> Any:
    if isinstance(room, Mapping):
        return {key: _content(slot) for key, slot in room.items()}
    return room.tensor


def _send(batches: Sequence[Arguments], device: torch.device) -> None:
    for tensor in (tensor for batch in batches for tensor in tensors(batch) if tensor.numel()):
        dist.send(tensor.contiguous().to(device), dst=0)

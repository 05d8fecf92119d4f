"""Tensors that are sharded among processes: each writes its shard, and any number of processes can read them.

shards-<rank>.safetensors   the shards of a process
shards-<rank>.json          the tensor of each shard: its full shape, and the offset of the shard
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from accmt.checkpoint.tensor_files import Files, aliases_of
from accmt.files.json_io import as_json, read_json

_NAME = "shards-{rank}"


def is_shared_out(tensor: Any) -> bool:
    """Return whether a tensor is sharded among processes (a DTensor)."""
    return hasattr(tensor, "device_mesh")


def share_out_again(model: nn.Module) -> None:
    """Reshard a model, to be called between passes.

    After a forward pass FSDP may leave unsharded tensors, which no optimizer holds, until the next backward pass.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")  # slow to import, and already imported if it wraps a model
    if fsdp is not None:
        for part in model.modules():
            if isinstance(part, fsdp.FSDPModule):
                part.reshard()


def shard_files(rank: int, files: Mapping[str, Mapping[str, Tensor]]) -> Files:
    """Return the files with the shards of a process; `files` are those that would hold the tensors unsharded."""
    parts: dict[str, Tensor] = {}
    places: dict[str, Any] = {}
    for file, tensors in files.items():
        for name, tensor in tensors.items():
            if is_shared_out(tensor) and _is_first_of_its_kind(tensor):
                key = _key(file, name)
                parts[key] = _local(tensor)
                places[key] = {"shape": list(tensor.shape), "offset": _offset(tensor)}
    name = _NAME.format(rank=rank)
    return {f"{name}.safetensors": parts, f"{name}.json": as_json(places)} if parts else {}


def read_shards(folder: Path) -> Shards:
    """Find the shards that all processes wrote into a folder."""
    found: dict[str, list[_Part]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob(_NAME.format(rank="*") + ".json")):
        for name, place in read_json(path).items():
            shape = tuple(map(int, place["shape"]))
            if shapes.setdefault(name, shape) != shape:
                raise ValueError(f"{path.name} gives '{name}' another shape than the other processes")
            found.setdefault(name, []).append(_Part(path.with_suffix(".safetensors"), tuple(place["offset"])))
    return Shards(found, shapes)


class _StandIn(Tensor):
    """Placeholder of a tensor without content, with the key of its shards."""

    key: str

    @classmethod
    def of(cls, key: str, shape: tuple[int, ...]) -> _StandIn:
        tensor: _StandIn = torch.empty(shape, device="meta").as_subclass(cls)
        tensor.key = key
        return tensor


@dataclass(frozen=True, slots=True)
class _Part:
    file: Path
    offset: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Shards:
    """Locations of the shards of tensors. `shapes` are the full shapes."""

    parts: Mapping[str, list[_Part]]
    shapes: Mapping[str, tuple[int, ...]]

    def stand_ins(self, file: str) -> dict[str, Tensor]:
        """Return name -> placeholder for each sharded tensor of a file, until `alike` reads it."""
        prefix = _key(file, "")
        return {
            key.removeprefix(prefix): _StandIn.of(key, shape)
            for key, shape in self.shapes.items()
            if key.startswith(prefix)
        }

    def alike(self, value: Any, tensor: Any) -> Any:
        """Convert a value of a checkpoint to match a tensor: sharded like it, if it has the same shape.

        Args:
            value: The value in the checkpoint, or its placeholder.
            tensor: The parameter or weight that it is for.

        Raises:
            ValueError: A part of it is missing in the files.
        """
        if not isinstance(value, Tensor):
            return value
        shares_out = is_shared_out(tensor) and value.shape == tensor.shape
        if not shares_out:
            zero = (0,) * value.dim()
            return self._cut(value.key, zero, tuple(value.shape)) if isinstance(value, _StandIn) else value
        from torch.distributed.tensor import DTensor

        offset, shape = _offset(tensor), tuple(_local(tensor).shape)
        if isinstance(value, _StandIn):
            part = self._cut(value.key, tuple(offset), shape)
        else:
            part = value[tuple(slice(start, start + length) for start, length in zip(offset, shape, strict=True))]
        part = part.to(_local(tensor).device)
        return DTensor.from_local(
            part, tensor.device_mesh, tensor.placements, shape=tensor.shape, stride=tensor.stride(), run_check=False
        )

    def _cut(self, name: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        """Read the slice of a tensor that begins at an offset.

        Raises:
            ValueError: A part of it is missing in the files.
        """
        result: Tensor | None = None
        missing = _count(shape)
        with ExitStack() as stack:
            for part in self.parts[name]:
                file = stack.enter_context(safe_open(part.file, framework="pt", device="cpu"))
                stored = aliases_of(file).get(name, name)
                piece = file.get_slice(stored)
                overlap = _overlap(part.offset, tuple(piece.get_shape()), offset, shape)
                if overlap is None and result is not None:
                    continue
                theirs, mine = overlap or ((slice(0, 0),) * len(shape), None)
                values = piece[theirs] if shape else file.get_tensor(stored)
                if result is None:
                    result = torch.empty(shape, dtype=values.dtype)
                if mine is not None:
                    result[mine] = values
                    missing -= values.numel()
        if missing or result is None:
            raise ValueError(f"parts of '{name}' are missing")
        return result


def _overlap(
    offset: tuple[int, ...], size: tuple[int, ...], other: tuple[int, ...], other_size: tuple[int, ...]
) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """Compute the overlap of two boxes, as slices of each; None if they do not overlap."""
    first: list[slice] = []
    second: list[slice] = []
    for start, length, other_start, other_length in zip(offset, size, other, other_size, strict=True):
        begin, end = max(start, other_start), min(start + length, other_start + other_length)
        if begin >= end:
            return None
        first.append(slice(begin - start, end - start))
        second.append(slice(begin - other_start, end - other_start))
    return tuple(first), tuple(second)


def _key(file: str, name: str) -> str:
    return f"{file.removesuffix('.safetensors')}.{name}"


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def _local(tensor: Any) -> Tensor:
    return tensor.to_local()  # type: ignore[no-any-return]


def _offset(tensor: Any) -> list[int]:
    """Return the offset of the shard of this process in the full tensor."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return list(offset)


def _is_first_of_its_kind(tensor: Any) -> bool:
    """Return whether this process is the first replica of its shard, as only that one writes it."""
    coordinates = tensor.device_mesh.get_coordinate()
    return all(
        place == 0 for place, placement in zip(coordinates, tensor.placements, strict=True) if placement.is_replicate()
    )

"""Summary of a module: its networks by parts, with their parameters and their size in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from accmt.distributed.weight_names import unwrapped


@dataclass(frozen=True, slots=True)
class ModelPart:
    """A network, or a layer of one; a shared tensor counts in the first part that holds it.

    Attributes:
        name: Its name in the module, such as "model.encoder".
        kind: The name of its class.
        parameters: Its number of parameters.
        trainable: How many of them require gradients.
        size: Bytes of its parameters and buffers.
    """

    name: str
    kind: str
    parameters: int
    trainable: int
    size: int


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """The parts of a module's networks, and their totals; `str` and `print` give a table."""

    parts: tuple[ModelPart, ...]

    @property
    def total(self) -> ModelPart:
        """All parts together."""
        counts = zip(*((part.parameters, part.trainable, part.size) for part in self.parts), strict=True)
        return ModelPart("total", "", *map(sum, counts))

    def __str__(self) -> str:
        rows = [("name", "class", "parameters", "trainable", "size")]
        for part in (*self.parts, self.total):
            size = f"{part.size / 1e6:,.3f} MB"
            rows.append((part.name, part.kind, f"{part.parameters:,}", f"{part.trainable:,}", size))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                text.ljust(w) if at < 2 else text.rjust(w) for at, (text, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        )


def summarize(module: Any, depth: int = 1) -> ModelSummary:
    """Summarize the networks in the attributes of a module: `model` in parts, down to a depth, and others whole."""
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 0:
        raise ValueError(f"depth is {depth!r}: it must be a whole number from 0")
    others = {name: value for name, value in vars(module).items() if name != "model" and isinstance(value, nn.Module)}
    seen: set[int] = set()
    parts = [_part(name, kind, tensors, seen) for name, kind, tensors in _cut("model", unwrapped(module.model), depth)]
    parts += [_part(name, network, _tensors(network, True), seen) for name, network in others.items()]
    return ModelSummary(tuple(parts))


def _cut(name: str, network: nn.Module, depth: int) -> Iterator[tuple[str, nn.Module, Iterable[Tensor]]]:
    """Yield the parts of a network at a depth, each with its tensors, and those that it holds itself above it."""
    children = list(network.named_children())
    if not depth or not children:
        yield name, network, _tensors(network, True)
        return
    if own := list(_tensors(network, False)):
        yield name, network, own
    for child, part in children:
        yield from _cut(f"{name}.{child}", part, depth - 1)


def _tensors(network: nn.Module, recurse: bool) -> Iterator[Tensor]:
    yield from network.parameters(recurse)
    yield from network.buffers(recurse)


def _part(name: str, network: nn.Module, tensors: Iterable[Tensor], seen: set[int]) -> ModelPart:
    new = [one for one in tensors if id(one) not in seen]
    seen.update(map(id, new))
    # Under DeepSpeed's stage 3 a process holds only a shard of each parameter; `ds_numel` is the full size.
    counts = [(one, int(getattr(one, "ds_numel", one.numel()))) for one in new]
    parameters = [(one, count) for one, count in counts if isinstance(one, nn.Parameter)]
    trained = sum(count for one, count in parameters if one.requires_grad)
    size = sum(count * one.element_size() for one, count in counts)
    return ModelPart(name, type(network).__name__, sum(count for _, count in parameters), trained, size)

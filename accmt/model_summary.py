"""Summary of a module: its networks by parts, with their parameters and their size in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Any

from torch import nn

from accmt.distributed.weight_names import unwrapped


@dataclass(frozen=True, slots=True)
class ModelPart:
    """A network or a layer: its name in the module, its class, its parameters, how many of them require gradients, and
    the bytes of its parameters and buffers. A shared tensor counts in the first part that holds it."""

    name: str
    kind: str
    parameters: int
    trainable: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """The parts of a module's networks, and all `together`; `print` shows a table."""

    parts: tuple[ModelPart, ...]

    @property
    def together(self) -> ModelPart:
        sums = map(sum, zip(*(astuple(part)[2:] for part in self.parts), strict=True))
        return ModelPart("together", "", *sums)

    def __str__(self) -> str:
        parts = map(astuple, (*self.parts, self.together))
        rows = [["name", "class", "parameters", "trainable", "bytes"]]
        rows += [[f"{cell:,}" if isinstance(cell, int) else cell for cell in part] for part in parts]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def summarize(module: Any, depth: int = 1) -> ModelSummary:
    """Summarize the networks in the attributes of a module: `model` in parts, down to a depth, and others whole."""
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 0:
        raise ValueError(f"depth is {depth!r}: it must be a whole number from 0")
    others = {name: value for name, value in vars(module).items() if name != "model" and isinstance(value, nn.Module)}
    seen: set[int] = set()
    parts = list(_parts("model", unwrapped(module.model), depth, seen))
    return ModelSummary((*parts, *(part for name, one in others.items() for part in _parts(name, one, 0, seen))))


def _parts(name: str, network: nn.Module, depth: int, seen: set[int]) -> Iterator[ModelPart]:
    """Yield the parts of a network at a depth, and one for the tensors that it holds itself above it."""
    children = list(network.named_children()) if depth else []
    tensors = [*network.parameters(not children), *network.buffers(not children)]
    if tensors or not children:
        new = {id(one): one for one in tensors if id(one) not in seen}
        seen.update(new)
        # Under DeepSpeed's stage 3 a process holds only a shard of each parameter; `ds_numel` is the full size.
        counts = [(one, int(getattr(one, "ds_numel", one.numel()))) for one in new.values()]
        own = [(one, count) for one, count in counts if isinstance(one, nn.Parameter)]
        trained = sum(count for one, count in own if one.requires_grad)
        size = sum(count * one.element_size() for one, count in counts)
        yield ModelPart(name, type(network).__name__, sum(count for _, count in own), trained, size)
    for child, part in children:
        yield from _parts(f"{name}.{child}", part, depth - 1, seen)

"""Names of weights that do not depend on wrappers of a model: `encoder._orig_mod.weight` is `encoder.weight`.

The wrappers are those of torch: `torch.compile`, `DataParallel`, `DistributedDataParallel`. In a checkpoint the
parameters of the model are named `model.<name>`; those of other networks of a module begin with its attribute name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from accmt._compat import COMPILED, is_compiled

_T = TypeVar("_T")
_PARALLEL = "module"


def plain_name(model: nn.Module, name: str) -> str:
    """Return the name of a weight or part of a model, without its wrappers."""
    node: nn.Module | None = model
    kept = []
    for part in name.split("."):
        if node is None or part != _wrapped_as(node):
            kept.append(part)
        node = None if node is None else getattr(node, part, None)
    return ".".join(kept)


def by_plain_name(model: nn.Module, named: Mapping[str, _T]) -> dict[str, _T]:
    """Rename values from the names of a model's weights or parts to plain names."""
    if not any(_wrapped_as(part) for part in model.modules()):
        return dict(named)
    return {plain_name(model, name): value for name, value in named.items()}


def by_own_name(model: nn.Module, named: Mapping[str, _T]) -> dict[str, _T]:
    """Rename values from plain names to the names that the model itself uses."""
    own = {plain_name(model, name): name for name in model.state_dict()}
    return {own.get(name, name): value for name, value in named.items()}


def as_expected(named: Mapping[str, _T], expected: Mapping[str, Any]) -> dict[str, _T]:
    """Rename the weights of a file, which may include names of wrappers, to the expected plain names."""
    if named.keys() == expected.keys():
        return dict(named)
    without = {_without(name, COMPILED): value for name, value in named.items()}
    if without.keys() != expected.keys() and all(name.startswith(f"{_PARALLEL}.") for name in without):
        without = {name.removeprefix(f"{_PARALLEL}."): value for name, value in without.items()}
    return without if without.keys() == expected.keys() else dict(named)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model without its wrappers."""
    while (name := _wrapped_as(model)) is not None:
        model = getattr(model, name)
    return model


def _wrapped_as(module: nn.Module) -> str | None:
    if is_compiled(module):
        return COMPILED
    return _PARALLEL if isinstance(module, DataParallel | DistributedDataParallel) else None


def _without(name: str, part: str) -> str:
    return ".".join(piece for piece in name.split(".") if piece != part)

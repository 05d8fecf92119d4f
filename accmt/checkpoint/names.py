"""Names of weights that do not depend on what a model is wrapped in: `encoder._orig_mod.weight` is `encoder.weight`.

The wrappers are those of torch: `torch.compile`, `DataParallel`, `DistributedDataParallel`. In a checkpoint the
parameters of the model are called `model.<name>`; those of other networks of a module have the name of its attribute.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

_T = TypeVar("_T")
_COMPILED, _PARALLEL = "_orig_mod", "module"


def plain_name(model: nn.Module, name: str) -> str:
    """The name of a weight or part of a model, without the wrappers on the way to it."""
    node: nn.Module | None = model
    kept = []
    for part in name.split("."):
        if node is None or part != _wrapped_as(node):
            kept.append(part)
        node = None if node is None else node._modules.get(part)
    return ".".join(kept)


def by_plain_name(model: nn.Module, named: Mapping[str, _T]) -> dict[str, _T]:
    """What is named as the weights or parts of a model are, by the plain names."""
    if not any(_wrapped_as(part) for part in model.modules()):
        return dict(named)
    return {plain_name(model, name): value for name, value in named.items()}


def by_own_name(model: nn.Module, named: Mapping[str, _T]) -> dict[str, _T]:
    """What has plain names, by those that the model itself uses."""
    own = {plain_name(model, name): name for name in model.state_dict()}
    return {own.get(name, name): value for name, value in named.items()}


def as_expected(named: Mapping[str, _T], expected: Mapping[str, Any]) -> dict[str, _T]:
    """Weights of a file, which may have been written with the names of a wrapper, by the plain names expected."""
    if named.keys() == expected.keys():
        return dict(named)
    without = {_without(name, _COMPILED): value for name, value in named.items()}
    if without.keys() != expected.keys() and all(name.startswith(f"{_PARALLEL}.") for name in without):
        without = {name.removeprefix(f"{_PARALLEL}."): value for name, value in without.items()}
    return without if without.keys() == expected.keys() else dict(named)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model in a wrapper; itself if it is in none."""
    while (name := _wrapped_as(model)) is not None:
        model = model._modules[name]  # type: ignore[assignment]  # a wrapper wraps a module
    return model


def _wrapped_as(module: nn.Module) -> str | None:
    dynamo = sys.modules.get("torch._dynamo.eval_frame")  # it takes long to import, and was where a model is compiled
    if dynamo is not None and isinstance(module, dynamo.OptimizedModule):
        return _COMPILED
    return _PARALLEL if isinstance(module, DataParallel | DistributedDataParallel) else None


def _without(name: str, part: str) -> str:
    return ".".join(piece for piece in name.split(".") if piece != part)

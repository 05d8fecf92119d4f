"""State that a resumed training restores besides weights and positions, and state that it cannot restore: random
generators that objects keep for themselves."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from accmt.checkpoint.object_state import has_state

# Attributes in which datasets and samplers hold what they wrap: one object, or several.
_ONE = ("dataset", "sampler", "batch_sampler", "transform")
_SEVERAL = ("datasets", "samplers", "transforms")


class Generators:
    """Random generators in the attributes of objects, and in those of what these wrap.

    Each call searches again, because some are created late.

    Args:
        roots: Name -> object.
    """

    def __init__(self, roots: Mapping[str, Any]) -> None:
        self._roots = dict(roots)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Yield each generator once, with its path."""
        seen: set[int] = set()
        for name, root in self._roots.items():
            yield from _within(name, root, True, seen)

    def states(self) -> dict[str, Any]:
        """Return the states of the generators by path."""
        return {name: _state(generator) for name, generator in self if not _is_systems(generator)}

    def check(self, states: Mapping[str, Any]) -> None:
        """Check that the generators that exist accept their states, and leave them unchanged.

        Raises:
            ValueError, TypeError, RuntimeError, KeyError: One does not.
        """
        now = self.states()
        try:
            self.restore(states)
        finally:
            self.restore(now)

    def restore(self, states: Mapping[str, Any], *, but: str | None = None) -> None:
        """Restore the states of the generators that exist, except those under one root."""
        for name, generator in self:
            if name in states and name.split(".")[0] != but:
                _set_state(generator, states[name])


def generators_of(module: Any, model: nn.Module, loaders: Mapping[str, Any]) -> Generators:
    """Collect the generators used in this process besides those of the training data: of the module, its model's
    layers, the loaders of validation data with their datasets, and the collate functions."""
    roots = {"module": module}
    roots |= {f"model.{name}" if name else "model": layer for name, layer in model.named_modules()}
    roots |= {f"loader of '{key}'": loader for key, loader in loaders.items()}
    roots |= {f"collate_fn of '{key}'": getattr(loader, "collate_fn", None) for key, loader in loaders.items()}
    return Generators(roots)


def inexact(loader: DataLoader[Any]) -> list[str]:
    """Describe in one text what keeps a training with this loader from being resumed exactly; empty if nothing does."""
    reasons = [*_of_generators(loader), *_of_workers(loader)]
    if not reasons:
        return []
    listed = "; ".join(reasons)
    return [f"a training that is resumed within an epoch may not match an uninterrupted one exactly: {listed}"]


def _of_generators(loader: DataLoader[Any]) -> Iterator[str]:
    """Yield a reason for each generator whose state cannot be reached; that of the operating system has none."""
    roots = {"dataset": loader.dataset, "collate_fn": loader.collate_fn}
    samplers = {"sampler": loader.sampler, "batch_sampler": loader.batch_sampler}
    for name, generator in Generators({**roots, **samplers}):
        if _is_systems(generator):
            yield f"{name} draws random numbers from the operating system"
        elif _continues_in_workers(loader, name.split(".")[0]):
            yield (
                f"the random state of {name} in workers is not saved in checkpoints "
                f"(draw from torch, numpy.random or random instead: they are seeded for every batch)"
            )


def _continues_in_workers(loader: DataLoader[Any], root: str) -> bool:
    """Return whether an object's own random draws are neither part of a state nor repeated."""
    if root not in ("dataset", "collate_fn") or not loader.num_workers:
        return False
    restarts = isinstance(loader.dataset, IterableDataset) and not loader.persistent_workers
    if root == "collate_fn":
        return not restarts or has_state(loader)
    return not restarts and not (has_state(loader) and has_state(loader.dataset))


def _of_workers(loader: DataLoader[Any]) -> Iterator[str]:
    dataset, name = loader.dataset, type(loader.dataset).__name__
    if loader.num_workers > 1 and not getattr(loader, "in_order", True):
        yield "in_order=False takes batches in the order in which workers happen to finish them"
    if isinstance(dataset, IterableDataset):
        return  # it receives the epoch, and is read again if its state cannot be reached
    if loader.num_workers and has_state(dataset) and not has_state(loader):
        yield f"the state of {name} in workers is not saved in checkpoints (only a StatefulDataLoader can save it)"
    if loader.persistent_workers and hasattr(dataset, "set_epoch"):
        yield f"persistent_workers do not receive the epochs that are passed to {name}.set_epoch"


def _within(path: str, value: Any, is_searched: bool, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Yield a generator, or those of an object whose parts are searched."""
    is_one = isinstance(value, _KINDS)
    if value is None or id(value) in seen or not (is_one or is_searched):
        return
    seen.add(id(value))
    if is_one:
        yield path, value
        return
    for name, part, is_wrapped in _parts(value):
        yield from _within(f"{path}.{name}", part, is_wrapped, seen)


def _parts(value: Any) -> Iterator[tuple[str, Any, bool]]:
    """Yield the attributes of an object by name, and whether it wraps them."""
    if isinstance(value, MethodType):
        yield "__self__", value.__self__, True
    elif isinstance(value, partial):
        parts = [("func", value.func), *enumerate(value.args), *value.keywords.items()]
        yield from ((str(name), part, True) for name, part in parts)
    else:
        for name in _attributes(value):
            part = getattr(value, name, None)
            if name in _SEVERAL and isinstance(part, Mapping | list | tuple):
                items = part.items() if isinstance(part, Mapping) else enumerate(part)
                yield from ((f"{name}.{key}", item, True) for key, item in items)
            else:
                yield name, part, name in (*_ONE, *_SEVERAL)


def _attributes(value: Any) -> Iterable[str]:
    slots: list[str] = []
    for kind in type(value).__mro__:
        named: str | Sequence[str] = vars(kind).get("__slots__", ())
        slots += [named] if isinstance(named, str) else list(named)
    return [*getattr(value, "__dict__", {}), *(name for name in slots if name not in ("__dict__", "__weakref__"))]


_KINDS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


def _is_systems(generator: Any) -> bool:
    return isinstance(generator, random.SystemRandom)


def _state(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return dict(generator.bit_generator.state)
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)

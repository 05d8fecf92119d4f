"""Use of the user's objects that leaves them unchanged."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from accmt._compat import SET_ON_SHARDED_LAYERS, own_buffers, version_of
from accmt.data.generators import Generators

_MOST_ITEMS, _MOST_BYTES, _DEEPEST = 10_000, 2**26, 3
_WRAPPED = ("dataset", "datasets", "sampler", "samplers", "batch_sampler", "transform", "transforms", "collate_fn")
_OF_LIBRARIES = ("accelerate", "accmt", "builtins", "datasets", "numpy", "torch", "transformers")

Restore = Callable[[], None]


@contextmanager
def untouched(learned: Iterable[Any], read: Iterable[Any], generators: Generators) -> Iterator[None]:
    """Restore what the block changes in attributes of objects: their values, the contents of containers, and the
    numbers in tensors that are not trained.

    Args:
        learned: Modules, metrics and states, with their parts.
        read: Loaders, with datasets, samplers and all that these wrap. Their tensors are data, and not restored.
        generators: Random generators that objects keep.
    """
    states = generators.states()
    restores = [restore for thing in _parts(learned) for restore in _learned(thing)]
    restores += [_attributes(thing, with_tensors=False) for thing in _chain(read)]
    try:
        yield
    finally:
        for restore in restores:
            restore()
        generators.restore(states)


def _parts(things: Iterable[Any]) -> list[Any]:
    """Collect objects, the layers in their attributes, and the user's own objects there, each once."""
    found: dict[int, Any] = {}
    for thing in things:
        for value in (thing, *vars(thing).values()):
            if isinstance(value, nn.Module):
                found |= {id(layer): layer for layer in value.modules()}
            elif value is thing or _is_of_user(value):
                found[id(value)] = value
    return list(found.values())


def _is_of_user(value: Any) -> bool:
    return hasattr(value, "__dict__") and not isinstance(value, type) and not _is_of_library(type(value))


def _is_of_library(kind: type) -> bool:
    package = kind.__module__.split(".")[0]
    return package in _OF_LIBRARIES or package in sys.stdlib_module_names


def _learned(thing: Any) -> Iterator[Restore]:
    """Yield functions that restore an object; for a layer owned or sharded by a library, only its buffers."""
    if not isinstance(thing, nn.Module):
        yield _attributes(thing, with_tensors=True)
        return
    yield from _content(own_buffers(thing), True, 1)
    if not _is_of_library(type(thing)) and not any(name.startswith(SET_ON_SHARDED_LAYERS) for name in vars(thing)):
        yield _attributes(thing, with_tensors=True)


def _chain(things: Iterable[Any]) -> list[Any]:
    """Collect objects and what they wrap, each once."""
    found: dict[int, Any] = {}
    waiting = list(things)
    while waiting:
        thing = waiting.pop()
        thing = thing.__self__ if isinstance(thing, MethodType) else thing
        if isinstance(thing, list | tuple):
            waiting += thing[:_MOST_ITEMS]
        elif id(thing) not in found and hasattr(thing, "__dict__") and not isinstance(thing, type):
            found[id(thing)] = thing
            waiting += [value for name, value in vars(thing).items() if name.lstrip("_") in (*_WRAPPED, "loader")]
    return list(found.values())


def _attributes(thing: Any, *, with_tensors: bool) -> Restore:
    own: dict[str, Any] = vars(thing)
    layer = vars(nn.Module()) if isinstance(thing, nn.Module) else ()
    former = {name: value for name, value in own.items() if name not in layer}
    contents = [restore for value in former.values() for restore in _content(value, with_tensors, _DEEPEST)]

    def restore() -> None:
        for name in own.keys() - former.keys() - set(layer):
            del own[name]
        own.update(former)
        for content in contents:
            content()

    return restore


def _content(value: Any, with_tensors: bool, depth: int) -> Iterator[Restore]:
    """Yield functions that restore the content of a container or a tensor."""
    if isinstance(value, Tensor):
        if with_tensors and not isinstance(value, nn.Parameter) and value.nbytes <= _MOST_BYTES:
            yield partial(_put_numbers_back, value, value.detach().clone(), version_of(value))
    elif isinstance(value, np.ndarray):
        if with_tensors and value.nbytes <= _MOST_BYTES and value.flags.writeable:
            yield partial(np.copyto, value, value.copy())
    elif isinstance(value, dict) and len(value) <= _MOST_ITEMS:
        yield partial(_put_entries_back, value, list(value.items()))
        for item in value.values() if depth else ():
            yield from _content(item, with_tensors, depth - 1)
    elif isinstance(value, list | deque | set) and len(value) <= _MOST_ITEMS:
        items = list(value)
        yield partial(_put_items_back, value, items)
        for item in items if depth else ():
            yield from _content(item, with_tensors, depth - 1)


def _put_numbers_back(tensor: Tensor, former: Tensor, version: int) -> None:
    if version_of(tensor) != version and tensor.shape == former.shape:
        with torch.no_grad():
            tensor.copy_(former)


def _put_entries_back(container: dict[Any, Any], entries: list[tuple[Any, Any]]) -> None:
    if not _are_same([part for entry in container.items() for part in entry], [part for e in entries for part in e]):
        container.clear()
        for key, value in entries:  # not `update`, which counts in a Counter
            container[key] = value


def _put_items_back(container: Any, items: list[Any]) -> None:
    if not _are_same(list(container), items):
        container.clear()
        (container.update if isinstance(container, set) else container.extend)(items)


def _are_same(ones: list[Any], others: list[Any]) -> bool:
    return len(ones) == len(others) and all(one is other for one, other in zip(ones, others, strict=True))

"""State in the attributes of a user's object that a checkpoint has to hold: networks, parameters, stateful objects.

Containers and plain objects are searched too, so that a list of networks is found as well.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from accmt.distributed.weight_names import as_expected, by_own_name, by_plain_name, plain_name

# Attributes of a module that are saved elsewhere, that the trainer sets, or that are not part of checkpoints.
_SET = ("model", "teacher", "state", "device", "accelerator", "tracker", "module", "trainer")
_APART = frozenset({*_SET, "_stepper", "_logged", "_training_metrics"})
_DEEPEST = 4
_LONGEST = 1000
_PLAIN = (str, bytes, int, float, complex, bool, type(None), type, types.ModuleType, types.FunctionType, DataLoader)


@dataclass(slots=True)
class Attributes:
    """Objects found, by attribute path, such as `head` or `heads.0`.

    Attributes:
        networks: Networks that are not part of the model, each once.
        loose: Parameters, and other leaf tensors that require a gradient, outside of any network.
        stateful: Other objects with `state_dict` and `load_state_dict`.
    """

    networks: dict[str, nn.Module] = field(default_factory=dict)
    loose: dict[str, Tensor] = field(default_factory=dict)
    stateful: dict[str, Any] = field(default_factory=dict)

    def parameters(self) -> dict[str, Tensor]:
        """Return all parameters, by attribute path."""
        found = dict(self.loose)
        for way, network in self.networks.items():
            for name, parameter in network.named_parameters():
                found[f"{way}.{plain_name(network, name)}"] = parameter
        return found

    def parts(self) -> dict[str, list[Tensor]]:
        """Return the parameters of each network, and those outside of any network, by attribute path."""
        inside = {way: list[Tensor](network.parameters()) for way, network in self.networks.items()}
        return {**{way: [value] for way, value in self.loose.items()}, **inside}

    def tensors(self) -> list[Tensor]:
        """Return all parameters and buffers."""
        parameters = [parameter for part in self.parts().values() for parameter in part]
        return parameters + [buffer for network in self.networks.values() for buffer in network.buffers()]

    def state_dict(self) -> dict[str, Any]:
        """Return the weights, and the extra state of networks, by attribute path and plain name."""
        states: dict[str, Any] = {way: value.detach() for way, value in self.loose.items()}
        for way, network in self.networks.items():
            for name, value in by_plain_name(network, network.state_dict()).items():
                states[f"{way}.{name}"] = value
        return states

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load weights and extra state into what exists here."""
        for way, value in self.loose.items():
            if way in state:
                with torch.no_grad():
                    value.copy_(state[way])
        for way, network in self.networks.items():
            start = f"{way}."
            own = {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
            if own:
                expected = by_plain_name(network, network.state_dict())
                network.load_state_dict(by_own_name(network, as_expected(own, expected)))


def attributes_of(owner: Any, model: nn.Module, apart: Sequence[Any] = ()) -> Attributes:
    """Find the state that an object keeps besides its model.

    Args:
        owner: The object, usually an `AcceleratorModule`.
        model: Its model, unwrapped, whose parts are left out wherever they are found.
        apart: Other objects to leave out.
    """
    own = {id(part) for part in model.modules()} | {id(parameter) for parameter in model.parameters()}
    found = Attributes()
    seen = own | {id(one) for one in (owner, *apart)}
    for name, value in _attributes(owner):
        if name not in _APART:
            _look(name, value, found, seen, 0)
    return found


def has_state(value: Any) -> bool:
    """Return whether an object has both `state_dict` and `load_state_dict`."""
    return not isinstance(value, type) and all(
        callable(getattr(value, name, None)) for name in ("state_dict", "load_state_dict")
    )


def _look(way: str, value: Any, found: Attributes, seen: set[int], depth: int) -> None:
    if isinstance(value, _PLAIN) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        _look_into_network(way, value, found, seen)
    elif isinstance(value, Tensor):
        if isinstance(value, nn.Parameter) or (value.requires_grad and value.is_leaf):
            found.loose[way] = value
    elif has_state(value):
        found.stateful[way] = value
    elif depth < _DEEPEST:
        for name, inner in _inside(value):
            _look(f"{way}.{name}", inner, found, seen, depth + 1)


def _look_into_network(way: str, network: nn.Module, found: Attributes, seen: set[int]) -> None:
    """Record a network; of one that contains parts of the model, record only the other parts."""
    parts = [part for part in network.modules() if part is not network]
    if not any(id(part) in seen for part in parts) and not any(id(one) in seen for one in network.parameters()):
        found.networks[way] = network
        seen.update(map(id, parts))
        seen.update(map(id, network.parameters()))
        return
    for name, inner in (*network.named_parameters(recurse=False), *network.named_children()):
        _look(f"{way}.{name}", inner, found, seen, 0)


def _attributes(owner: Any) -> Iterator[tuple[str, Any]]:
    for kind in type(owner).__mro__:
        for name, value in vars(kind).items():
            if isinstance(value, nn.Module | nn.Parameter):
                yield name, value
    yield from getattr(owner, "__dict__", {}).items()
    if isinstance(owner, nn.Module):
        yield from (*owner.named_parameters(recurse=False), *owner.named_children())


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        named = value.items() if isinstance(value, Mapping) else enumerate(value)
        yield from ((str(key), inner) for key, inner in (list(named) if len(value) <= _LONGEST else ()))
    elif type(value).__module__.partition(".")[0] not in _KNOWN:
        yield from getattr(value, "__dict__", {}).items()


_KNOWN = frozenset({"builtins", "torch", "numpy", "collections", "accelerate", "transformers", "datasets", "accmt"})

"""State in the attributes of a user's object that a checkpoint has to hold: networks, parameters, stateful objects;
and the methods that a module has to handle all of its networks together.

Containers and plain objects are searched too, so that a list of networks is found as well.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

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
            found |= {f"{way}.{plain_name(network, name)}": one for name, one in network.named_parameters()}
        return found

    def parts(self) -> dict[str, list[Tensor]]:
        """Return the parameters of each network, and those outside of any network, by attribute path."""
        inside = {way: list[Tensor](network.parameters()) for way, network in self.networks.items()}
        return {**{way: [value] for way, value in self.loose.items()}, **inside}

    def tensors(self) -> list[Tensor]:
        """Return all parameters and buffers."""
        buffers = (buffer for network in self.networks.values() for buffer in network.buffers())
        return [*self.parameters().values(), *buffers]

    def state_dict(self) -> dict[str, Any]:
        """Return the weights, and the extra state of networks, by attribute path and plain name."""
        states: dict[str, Any] = {way: value.detach() for way, value in self.loose.items()}
        for way, network in self.networks.items():
            own = by_plain_name(network, network.state_dict())
            states |= {f"{way}.{name}": value for name, value in own.items()}
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
    return not isinstance(value, type) and all(has_own(value, name) for name in ("state_dict", "load_state_dict"))


def has_own(value: Any, name: str) -> bool:
    """Return whether an object has a method that is not one of `NetworkOwner`, which checkpoints do not use."""
    method = getattr(value, name, None)
    return callable(method) and getattr(method, "__func__", None) is not vars(NetworkOwner).get(name)


class NetworkOwner:
    """Methods of a `torch.nn.Module` for an object with several networks: `model`, and those in other attributes.

    A subclass may use these names for anything else: only users call the methods by `self`.
    """

    model: nn.Module
    teacher: nn.Module | None
    device: torch.device

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Give precedence to methods of other base classes, such as `torch.nn.Module`."""
        super().__init_subclass__(**kwargs)
        others = super()
        for name in ("train", "eval", "to", "parameters", "state_dict", "load_state_dict"):
            if getattr(cls, name) is vars(NetworkOwner)[name] and hasattr(others, name):
                setattr(cls, name, getattr(others, name))

    def train(self, mode: bool = True) -> Self:
        """Set the model and the other networks to training mode, or to evaluation mode; the teacher always to this."""
        for network in _whole(self).networks.values():
            network.train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def eval(self) -> Self:
        """Set all networks to evaluation mode."""
        return NetworkOwner.train(self, False)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or convert all networks and parameters, as `torch.nn.Module.to` does, and set `self.device`."""
        found = _whole(self)
        networks = [*found.networks.values(), *([] if self.teacher is None else [self.teacher])]
        for network in networks:
            network.to(*args, **kwargs)
        for parameter in found.loose.values():
            [moved] = nn.ParameterList([parameter]).to(*args, **kwargs)
            parameter.data = moved.data
        tensors = (tensor for network in networks for tensor in (*network.parameters(), *network.buffers()))
        self.device = next((tensor.device for tensor in tensors), self.device)
        return self

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield each parameter of the model and of the other networks once, without those of the teacher."""
        yield from _whole(self).parameters().values()  # type: ignore[misc]  # or a leaf tensor

    def state_dict(self) -> dict[str, Any]:
        """Return the weights by name, as checkpoints have them: `model.<name>`, `<attribute>.<name>`; no teacher."""
        return _whole(self).state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            RuntimeError: Names or shapes differ, all of which are listed; nothing was loaded.
        """
        expected, owner = NetworkOwner.state_dict(self), type(self).__name__
        lines = [f"{name} is missing" for name in expected if name not in state]
        lines += [f"{name} is not in {owner}" for name in state if name not in expected]
        pairs = [(name, _shape(state[name]), _shape(expected[name])) for name in expected if name in state]
        lines += [f"{name} is {found} and must be {wanted}" for name, found, wanted in pairs if found != wanted]
        if lines:
            first = f"the weights are not those of {owner}; nothing was loaded:"
            hint = [] if pairs else ["weights of the model alone: self.model.load_state_dict"]
            raise RuntimeError("\n  ".join([first, *lines, *hint]))
        _whole(self).load_state_dict(state)


def _whole(owner: NetworkOwner) -> Attributes:
    """Return all networks, with the model, and the parameters outside of them."""
    found = attributes_of(owner, owner.model)
    return Attributes({"model": owner.model, **found.networks}, found.loose)


def _shape(value: Any) -> Any:
    return tuple(value.shape) if hasattr(value, "shape") else "not a tensor"


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

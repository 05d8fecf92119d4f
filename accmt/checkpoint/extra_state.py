"""State of a module and its callbacks besides the model and the optimizer, as parts of a checkpoint.

State that all processes share (networks besides the model, modes, further optimizers) is written once; the `state_dict`
of any other object is written by each process, because it may differ between them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from accmt.checkpoint.module_modes import Modes
from accmt.checkpoint.object_state import Attributes, attributes_of, has_own, has_state
from accmt.checkpoint.optimizer_state import NamedOptimizer, held_by
from accmt.checkpoint.shards import reshard
from accmt.checkpoint.stateful import Mismatch
from accmt.distributed.weight_names import as_expected, plain_name

_METHODS = ("state_dict", "load_state_dict")
_SHARED = (Optimizer, LRScheduler, torch.amp.GradScaler)


class ExtraState:
    """State besides the model. `begin` applies what was restored, once callbacks have created their objects.

    Args:
        module: The module.
        model: Its model, unwrapped.
        callbacks: The callbacks.
        apart: Objects that a checkpoint holds elsewhere.
    """

    def __init__(self, module: Any, model: nn.Module, callbacks: Sequence[Any] = (), apart: Sequence[Any] = ()) -> None:
        self._module = module
        self._model = model
        self._callbacks = _named(callbacks)
        self._apart = (*apart, *callbacks)
        self._modes: Modes | None = None
        self._pending: dict[str, Any] = {}

    def found(self) -> Attributes:
        """Find the attributes that hold state now."""
        return attributes_of(self._module, self._model, self._apart)

    def parameters(self) -> dict[str, Tensor]:
        """Return all parameters by name, those of the model as `model.<name>`."""
        reshard(self._model)
        own = {f"model.{plain_name(self._model, name)}": value for name, value in self._model.named_parameters()}
        return {**own, **self.found().parameters()}

    def networks(self) -> dict[str, Tensor]:
        """Return the weights of networks besides the model, by attribute path."""
        return {name: value for name, value in self.found().state_dict().items() if isinstance(value, Tensor)}

    def trained(self, held: Iterable[Any]) -> dict[str, Tensor]:
        """Return the weights of networks and parameters that are trained: some optimizer holds a part of them."""
        ids = {id(parameter) for parameter in held} | self._held_further()
        ways = [way for way, part in self.found().parts().items() if any(id(one) in ids for one in part)]
        below = tuple(f"{way}." for way in ways)
        return {name: value for name, value in self.networks().items() if f"{name}.".startswith(below)}

    def further_optimizers(self) -> list[Optimizer]:
        """Return the optimizers in attributes of the module."""
        return [part for part in self.found().stateful.values() if isinstance(part, Optimizer)]

    def left_to_trainer(self) -> dict[str, Tensor]:
        """Return the parameters besides the model that no optimizer in an attribute of the module holds."""
        further = self._held_further()
        return {name: value for name, value in self.found().parameters().items() if id(value) not in further}

    def shared(self) -> dict[str, Any]:
        """Return the state that all processes share, besides the weights."""
        extra = {name: value for name, value in self.found().state_dict().items() if not isinstance(value, Tensor)}
        attributes = {way: part.state_dict() for way, part in self._further().items()}
        return {"modes": self._tracked_modes().state_dict(), "extra": extra, "attributes": attributes}

    def own(self) -> dict[str, Any]:
        """Return the state dicts of the objects of this process, by name."""
        return {name: _state_of(part) for name, part in self.objects().items()}

    def objects(self) -> dict[str, Any]:
        """Return the objects that have their own state: attributes, the module itself, callbacks."""
        stateful = self.found().stateful
        named = {f"module.{way}": part for way, part in stateful.items() if not isinstance(part, _SHARED)}
        if has_state(self._module) and not _is_inherited(self._module):
            named["module"] = self._module
        return {**named, **{name: part for name, part in self._callbacks.items() if has_state(part)}}

    def half(self) -> Iterator[tuple[Any, str, str]]:
        """Yield each object that has only one of the two methods, the method it has, and the one it lacks."""
        for part in (self._module, *self._callbacks.values()):
            for has, lacks in (_METHODS, reversed(_METHODS)):
                if has_own(part, has) and not has_own(part, lacks):
                    yield part, has, lacks

    def differing(
        self, weights: Mapping[str, Tensor], *, at_least_those: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the weights here, and those in a file, of the networks that are in both.

        Args:
            weights: The weights in the file.
            at_least_those: Include all networks of the file, even those that are not here.
        """
        own = self.networks()
        ways = set(map(_way, weights)) if at_least_those else set(map(_way, weights)) & set(map(_way, own))
        here = {name: value for name, value in own.items() if _way(name) in ways}
        return here, as_expected({name: value for name, value in weights.items() if _way(name) in ways}, here)

    def problems(self, states: Mapping[str, Any]) -> list[str]:
        """List where states are not those of the optimizers in attributes that exist by now, one line each."""
        parts = ((part, states.get(way)) for way, part in self._further().items() if isinstance(part, NamedOptimizer))
        return [line for part, state in parts if state is not None for line in part.problems(state)]

    def restore(self, weights: Mapping[str, Tensor], shared: Mapping[str, Any]) -> None:
        """Load the weights of existing networks, which must fit, and defer the rest to `begin`.

        Raises:
            ValueError: A buffer is not a tensor.
        """
        for name, value in shared["modes"]["buffers"].items():
            if not isinstance(value, Tensor):
                raise ValueError(f"the buffer {name} is {value!r:.100}")
        self._pending |= {**shared, "weights": {**weights, **shared["extra"]}}
        self.found().load_state_dict(self._pending["weights"])

    def restore_own(self, states: Mapping[str, Any]) -> None:
        """Defer the restoring of the states of objects to `begin`."""
        self._pending["own"] = states

    def begin(self) -> list[str]:
        """Start to track modes, and apply the restored state; return what differs from before, one line each.

        Raises:
            Mismatch: The state of an optimizer that was created since `restore` does not fit it.
        """
        modes = self._tracked_modes()
        pending, self._pending = self._pending, {}
        notes: list[str] = []
        if "weights" in pending:
            if lines := self.problems(pending["attributes"]):
                raise Mismatch("the checkpoint does not fit an optimizer of the module:\n  " + "\n  ".join(lines))
            self.found().load_state_dict(pending["weights"])
            notes += modes.load_state_dict(pending["modes"])
            notes += _loaded(self._further(), pending["attributes"])
        if "own" in pending:
            notes += _loaded(self.objects(), pending["own"])
        return notes

    def _tracked_modes(self) -> Modes:
        if self._modes is None:
            self._modes = Modes(lambda: {"model": self._model, **self.found().networks}, lambda: self.found().loose)
        return self._modes

    def _held_further(self) -> set[int]:
        return {id(parameter) for part in self.further_optimizers() for parameter in held_by(part)}

    def _further(self) -> dict[str, Any]:
        """Return optimizers, schedulers and scalers in attributes of the module."""
        return {
            way: NamedOptimizer(part, self.parameters) if isinstance(part, Optimizer) else part
            for way, part in self.found().stateful.items()
            if isinstance(part, _SHARED)
        }


def _loaded(parts: Mapping[str, Any], states: Mapping[str, Any]) -> list[str]:
    notes = [
        f"the checkpoint has a state of {name}, which does not exist here: it is ignored"
        for name in states
        if name not in parts
    ]
    for name, part in parts.items():
        if name not in states:
            notes.append(f"the checkpoint has no state of {name}: it starts from scratch")
            continue
        try:
            part.load_state_dict(states[name])
        except Exception as error:
            error.add_note(f"raised in load_state_dict of {name}")
            raise
    return notes


def _state_of(part: Any) -> Any:
    try:
        return part.state_dict()
    except Exception as error:
        error.add_note(f"raised in {type(part).__name__}.state_dict")
        raise


def _is_inherited(module: Any) -> bool:
    return isinstance(module, nn.Module) and type(module).state_dict is nn.Module.state_dict


def _named(callbacks: Sequence[Any]) -> dict[str, Any]:
    """Return callbacks by class name, numbered where several have the same class."""
    counts = Counter[str]()
    named: dict[str, Any] = {}
    for callback in callbacks:
        name = type(callback).__name__
        counts[name] += 1
        named[f"callback {name}" if counts[name] == 1 else f"callback {name} {counts[name]}"] = callback
    return named


def _way(name: str) -> str:
    return name.partition(".")[0]

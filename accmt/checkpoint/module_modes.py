"""State of a network outside its state dict: `requires_grad` of parameters, training mode of parts, and
non-persistent buffers.

All three are configuration where the script sets them, and state where the training changes them. So a checkpoint also
holds their values at the start of the training: where the script now sets another value, the script's is used, and
otherwise the checkpoint's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from accmt._compat import unsaved_buffers
from accmt.checkpoint.tensor_files import tensor_problem
from accmt.distributed.weight_names import plain_name

# Mode -> the attribute that is False where it is on.
_MODES = {"frozen": "requires_grad", "evaluating": "training"}


class Modes:
    """Tracker of changes in networks since its construction, which must be before the first step.

    Args:
        roots: Returns the networks, by name.
        loose: Returns the parameters outside of any network, by name.
    """

    def __init__(
        self, roots: Callable[[], Mapping[str, nn.Module]], loose: Callable[[], Mapping[str, Tensor]] = dict
    ) -> None:
        self._roots = roots
        self._loose = loose
        self._changed: set[str] = set()
        self._started = self._listed()
        self._first = {name: value.to("cpu", copy=True) for name, value in self._buffers().items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the modes now and at the start, and the buffers that have changed since."""
        buffers = self._buffers()
        self._changed |= {name for name, value in buffers.items() if self._is_changed(name, value)}
        changed = {name: value for name, value in buffers.items() if name in self._changed}
        return {"now": self._listed(), "start": self._started, "buffers": changed}

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Restore what the training had changed.

        Returns:
            What the script sets differently than at the start of the training, one line each.
        """
        for mode, attribute in _MODES.items():
            by_script = set(self._started[mode]) ^ set(state["start"][mode])
            for name, one in self._those_with(mode):
                if name not in by_script and not (isinstance(one, Tensor) and not one.is_leaf):
                    setattr(one, attribute, name not in state["now"][mode])
        self._load_buffers(state)
        return _differing(self._started, state["start"])

    def _load_buffers(self, state: Mapping[str, Any]) -> None:
        here, parts = self._buffers(), dict(self._modules())
        for name, value in state["buffers"].items():
            way, _, key = name.rpartition(".")
            owner, own = parts.get(way), here.get(name)
            if owner is None or not key:
                continue
            if own is None and not hasattr(owner, key):
                device = next((one.device for one in (*owner.parameters(), *owner.buffers())), torch.device("cpu"))
                owner.register_buffer(key, value.to(device), persistent=False)
            elif own is None or self._started["shapes"].get(name) != state["start"]["shapes"].get(name):
                continue  # the script now creates it differently
            elif own.shape == value.shape:
                own.copy_(value)
            else:
                setattr(owner, key, value.to(own.device, own.dtype))
            self._changed.add(name)

    def _listed(self) -> dict[str, Any]:
        modes = {
            mode: [name for name, one in self._those_with(mode) if not getattr(one, attribute)]
            for mode, attribute in _MODES.items()
        }
        return {**modes, "shapes": {name: list(value.shape) for name, value in self._buffers().items()}}

    def _those_with(self, mode: str) -> Iterator[tuple[str, Any]]:
        return self._parameters() if mode == "frozen" else self._modules()

    def _modules(self) -> Iterator[tuple[str, nn.Module]]:
        for root, network in self._roots().items():
            for name, part in network.named_modules():
                yield f"{root}.{plain_name(network, name)}".removesuffix("."), part

    def _parameters(self) -> Iterator[tuple[str, Tensor]]:
        for root, network in self._roots().items():
            for name, parameter in network.named_parameters():
                yield f"{root}.{plain_name(network, name)}", parameter
        yield from self._loose().items()

    def _buffers(self) -> dict[str, Tensor]:
        """Return the non-persistent buffers."""
        keys = ((way, part, key) for way, part in self._modules() for key in unsaved_buffers(part))
        named = {f"{way}.{key}": getattr(part, key, None) for way, part, key in keys}
        return {
            name: value.detach() for name, value in named.items() if value is not None and not tensor_problem(value)
        }

    def _is_changed(self, name: str, value: Tensor) -> bool:
        former = self._first.get(name)
        if former is None or former.shape != value.shape or former.dtype != value.dtype:
            return True
        return not torch.equal(_bytes(former), _bytes(value.cpu()))


def _bytes(tensor: Tensor) -> Tensor:
    """View a tensor as bytes, because not all dtypes can be compared, and NaN does not equal itself."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _differing(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    words = {"frozen": ("frozen", "trained"), "evaluating": ("in evaluation mode", "in training mode")}
    lines = []
    for kind, (is_so, is_not) in words.items():
        own, saved = set(mine[kind]), set(theirs[kind])
        lines += [f"{name} was {is_not} at the start and is {is_so}" for name in sorted(own - saved)]
        lines += [f"{name} was {is_so} at the start and is {is_not}" for name in sorted(saved - own)]
    return lines if len(lines) <= 4 else [*lines[:4], f"... and {len(lines) - 4} more parts that were set differently"]

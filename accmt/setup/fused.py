"""Fused steps: kernels of torch that update all parameters of a group at once, used by default where they are right.

Fused kernels read parameters, gradients and states as flat memory. On the CPU they do not check that these are laid out
alike, and compute something else if they are not: a group is fused only while all of its tensors are contiguous.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from accmt._compat import SCALES_ITSELF, has_fused_kernel
from accmt.distributed.strategy import PLAIN
from accmt.hyperparameters import HyperParameters
from accmt.hyperparameters.optimizers import OPTIMIZERS

_contiguous = Tensor.is_contiguous


def use_fused(optimizer: Any, hps: HyperParameters, accelerator: Accelerator) -> None:
    """Let an optimizer of torch, built from the hyperparameters, make fused steps, unless they say how it steps."""
    kind, options, device = type(optimizer), optimizer.defaults, accelerator.device.type
    is_torchs = kind is OPTIMIZERS.resolve(hps.optimizer) and kind.__module__.startswith("torch.optim.")
    is_open = options.get("fused", False) is None and options["foreach"] is None
    if not is_torchs or not is_open or options["differentiable"] or options.get("capturable"):
        return
    has_tensors = any(isinstance(value, Tensor) for value in chain.from_iterable(map(_values, options.values())))
    if not has_tensors and accelerator.distributed_type in PLAIN and has_fused_kernel(kind.__name__, device):
        choose = _Choice(device)
        optimizer.register_step_pre_hook(choose)
        optimizer.register_load_state_dict_post_hook(choose)
        choose(optimizer)


def leave_scaling(optimizer: Any) -> None:
    """Let the loss scaler of fp16 unscale gradients and skip steps: what a fused kernel skips, nothing else learns of,
    and the scheduler would step."""
    vars(optimizer).pop(SCALES_ITSELF, None)


class _Choice:
    """Choice, for each group at each step, between the fused kernel and torch's default."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._sizes: list[int] = []
        self._suited: list[bool] = []

    def __call__(self, optimizer: Any, *_: Any) -> None:
        groups = optimizer.param_groups
        sizes = [len(group["params"]) for group in groups]
        if sizes != self._sizes:
            self._sizes, self._suited = sizes, [all(map(self._suits, group["params"])) for group in groups]
        for group, suited in zip(groups, self._suited, strict=True):
            is_fused = suited and _is_flat(group["params"]) and _starts_together(optimizer, group)
            if is_fused and not group["fused"]:
                _fit_states(optimizer, group["params"])
            group["fused"] = is_fused or None

    def _suits(self, parameter: Tensor) -> bool:
        is_plain = type(parameter) in (Tensor, nn.Parameter) and parameter.is_floating_point()
        return is_plain and parameter.device.type == self._device


def _is_flat(parameters: list[Tensor]) -> bool:
    """Return whether parameters and gradients are contiguous; sparse ones are not."""
    gradients = [gradient for parameter in parameters if (gradient := parameter.grad) is not None]
    return all(map(_contiguous, gradients)) and all(map(_contiguous, parameters))


def _starts_together(optimizer: Any, group: dict[str, Any]) -> bool:
    """Return whether momenta begin in one step: torch's kernel of SGD refuses those that begin later, as of layers that
    are unfrozen or were not used."""
    if not group.get("momentum"):
        return True
    states = (optimizer.state.get(each, {}) for each in group["params"] if each.grad is not None)
    return len({state.get("momentum_buffer") is None for state in states}) < 2


def _fit_states(optimizer: Any, parameters: list[Tensor]) -> None:
    """Give states that an unfused step made, or a checkpoint held, the form that a fused one relies on."""
    for parameter in parameters:
        state = optimizer.state.get(parameter, {})
        for name, value in state.items():
            if name == "step":
                state[name] = torch.as_tensor(value, dtype=torch.float32, device=parameter.device)
            elif isinstance(value, Tensor):
                state[name] = value.to_dense().contiguous()


def _values(option: object) -> Iterator[object]:
    yield from option if isinstance(option, tuple) else (option,)

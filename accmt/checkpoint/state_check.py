"""Checks of the states of optimizers, schedulers and gradient scalers in a checkpoint, before anything is restored.

torch loads nearly everything: a tensor of another shape, or a missing one, shows at a later step, or not at all.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

_NOT_TRIED = {"foreach": False, "fused": False, "capturable": False, "lr": 0.0}
"""Options that decide how a step is computed, not what it keeps."""


def options_problems(optimizer: Any, options: Mapping[str, Any]) -> Iterator[str]:
    """Yield the options of a group in a checkpoint that are of another kind than the optimizer's, one line each."""
    for name, value in options.items():
        if value is None and name in _NOT_TRIED:
            continue  # left to torch
        default = getattr(optimizer, "defaults", {}).get(name)
        if not _is_alike(default, value):
            yield f"the option {name} of the optimizer is {value!r:.100} in the checkpoint, and {default!r} here"


def entries_problems(kept: Mapping[str, Tensor], name: str, entries: Mapping[str, Any]) -> Iterator[str]:
    """Yield how the state of a parameter in a checkpoint differs from what its optimizer keeps, one line each."""
    for key, tensor in kept.items():
        value = entries.get(key)
        if key in entries and not _is_alike(tensor, value):
            shape = f"the shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"the value {value!r:.100}"
            yield f"{key} of {name} has {shape} in the checkpoint and the shape {tuple(tensor.shape)} here"
        elif key not in entries and key not in _ADDED:
            yield f"{key} of {name} is missing in the optimizer of the checkpoint"


def plain_problems(name: str, part: Any, saved: Any) -> Iterator[str]:
    """Yield how the state of a scheduler or scaler of torch differs in kind from its present one, one line each."""
    owner, here = getattr(part, "scheduler", part), part.state_dict()
    if not isinstance(saved, Mapping):
        yield f"the state of the {name} is {saved!r:.100} in the checkpoint"
        return
    for key, value in saved.items() if type(owner).__module__.startswith("torch.") else ():
        if key in here and not _is_alike(here[key], value):
            yield f"{key} of the {name} is {value!r:.100} in the checkpoint and {here[key]!r:.100} here"
        elif key not in here and callable(getattr(owner, key, None)):
            yield f"{key} of the {name} is not state, and the checkpoint has a value of it"


_ADDED = ("max_exp_avg_sq", "grad_avg", "momentum_buffer")
"""Entries that may be missing: they belong to options that can be switched on during the training."""


def kept_for(optimizer: Any, options: Mapping[str, Any], parameter: Tensor) -> dict[str, Tensor]:
    """Return the tensors, without content, that an optimizer of torch keeps for a parameter; {} if it cannot be tried.

    A copy of the optimizer makes a step with the parameter on the meta device, where nothing is computed.
    """
    kind = type(optimizer)
    if not kind.__module__.startswith("torch.optim."):
        return {}
    twin = torch.nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, device="meta"))
    twin.grad = torch.empty_like(twin)
    group = {**options, **{name: value for name, value in _NOT_TRIED.items() if name in options}, "params": [twin]}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            trial = kind([group])
            inspect.unwrap(kind.step)(trial)  # without the hooks that may be registered for all optimizers
    except Exception:
        return {}  # such as LBFGS, which needs a closure, and SparseAdam, which needs sparse gradients
    return {key: value for key, value in trial.state[twin].items() if isinstance(value, Tensor)}


def _is_alike(here: Any, saved: Any) -> bool:
    """Return whether two values are of one kind; None stands for any."""
    if here is None:
        return True
    if isinstance(here, bool | str):
        return type(saved) is type(here)
    if isinstance(here, Tensor) and here.dim():
        return isinstance(saved, Tensor) and saved.shape == here.shape
    if isinstance(here, Real | Tensor):
        return saved.numel() == 1 if isinstance(saved, Tensor) else _is_number(saved)
    if isinstance(here, Mapping):
        return isinstance(saved, Mapping) and all(_is_alike(here[key], saved[key]) for key in here.keys() & saved)
    if isinstance(here, list | tuple):
        return isinstance(saved, list | tuple) and _are_alike(here, saved)
    return True


def _are_alike(here: Any, saved: Any) -> bool:
    """Compare each value; a list may be longer, such as one with a value for each parameter group."""
    if isinstance(here, tuple) and len(here) != len(saved):
        return False
    return all(map(_is_alike, [*here, *here[-1:] * len(saved)], saved))


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)

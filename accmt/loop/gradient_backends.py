"""Operations that compute, clip and apply gradients: of torch itself, through Accelerate, or of DeepSpeed's engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from accmt._compat import clip_together
from accmt.distributed.strategy import PLAIN, is_deepspeed

_FOREACH = ("cpu", "cuda")  # devices


@dataclass(frozen=True, slots=True)
class GradientBackend:
    """Operations that an optimizer step consists of.

    Attributes:
        differentiate: Adds the gradients of a loss.
        no_sync: A context in which gradients are not synchronized across processes, because more follow.
        clip: Clips the gradients of parameters to a norm, and returns the norm before; None if `step` does it.
        step: Steps the optimizer.
        zero_grad: Resets the gradients.
        was_skipped: Returns whether the last step was skipped because gradients overflowed fp16; None if none ever is.
        clip_value: Clips each element of the gradients of parameters; not with DeepSpeed.
        norm: If `step` clips: returns the norm of the last step's gradients before clipping.
    """

    differentiate: Callable[..., None]
    no_sync: Callable[[], AbstractContextManager[Any]]
    clip: Callable[[list[nn.Parameter], float], Tensor] | None
    step: Callable[..., Any]
    zero_grad: Callable[..., None]
    was_skipped: Callable[[], bool] | None
    clip_value: Callable[[list[nn.Parameter], float], None] = nn.utils.clip_grad_value_
    norm: Callable[[], Tensor | None] = lambda: None


def updates_of(accelerator: Accelerator, model: nn.Module, optimizer: Any) -> GradientBackend:
    """Return the operations for a prepared model and a prepared optimizer."""
    no_sync = partial(accelerator.no_sync, model)
    if is_deepspeed(accelerator):
        return _by_deepspeed(model, optimizer)
    if accelerator.scaler is None and accelerator.distributed_type in PLAIN:
        # Accelerate would only forward these calls, at a cost in every step.
        own = optimizer.optimizer
        return GradientBackend(Tensor.backward, no_sync, _clip, own.step, _zero_grad_of(own), None)

    def clip(parameters: list[nn.Parameter], most: float) -> Tensor:
        norm = accelerator.clip_grad_norm_(parameters, most)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # type: ignore[no-any-return]

    return GradientBackend(
        accelerator.backward,
        no_sync,
        clip,
        optimizer.step,
        optimizer.zero_grad,
        lambda: optimizer.step_was_skipped,
        accelerator.clip_grad_value_,
    )


@torch.no_grad()
def _clip(parameters: list[nn.Parameter], most: float) -> Tensor:
    """Clip gradients as torch's `clip_grad_norm_` does, bit for bit, but at once if all are of one kind."""
    gradients = [gradient for parameter in parameters if (gradient := parameter.grad) is not None]
    kinds = {(type(one), one.layout, one.device, one.dtype) for one in gradients}
    if [kind[:2] for kind in kinds] == [(Tensor, torch.strided)] and gradients[0].device.type in _FOREACH:
        return clip_together(gradients, most)
    return nn.utils.clip_grad_norm_(parameters, most)


def _zero_grad_of(optimizer: Any) -> Callable[..., None]:
    """Return the reset of an optimizer's gradients: torch's own, without what it prepares for profilers and zeros."""
    if getattr(optimizer.zero_grad, "__func__", None) is not torch.optim.Optimizer.zero_grad:
        return optimizer.zero_grad  # type: ignore[no-any-return]

    def zero_grad(set_to_none: bool = True) -> None:
        if not set_to_none:
            optimizer.zero_grad(set_to_none=False)
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    return zero_grad


def _by_deepspeed(engine: Any, optimizer: Any) -> GradientBackend:
    """Return the operations of the engine, which clips, steps and resets the gradients in one call."""
    is_managed = engine.managed_gradient_accumulation()

    @contextmanager
    def no_sync() -> Iterator[None]:
        engine.set_gradient_accumulation_boundary(is_boundary=False)
        try:
            yield
        finally:
            engine.set_gradient_accumulation_boundary(is_boundary=True)

    def norm() -> Tensor | None:
        value = engine.get_global_grad_norm()
        return None if value is None else torch.as_tensor(value).detach()

    def zero_grad(set_to_none: bool = True) -> None:
        """Do nothing: the engine has reset the gradients."""

    if is_managed:
        engine.set_gradient_accumulation_boundary(is_boundary=True)
    return GradientBackend(
        engine.backward, no_sync, None, engine.step, zero_grad, lambda: bool(optimizer.step_was_skipped), norm=norm
    )

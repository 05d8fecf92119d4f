"""How gradients are computed, clipped and used: by torch itself, through Accelerate, or by DeepSpeed's engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from accmt.loop.engines import PLAIN, is_deepspeed


@dataclass(frozen=True, slots=True)
class Updates:
    """What an optimizer step is made of.

    Attributes:
        differentiate: Adds the gradients of a loss.
        no_sync: A context in which gradients stay on their process, because more are to come.
        clip: Clips the gradients of parameters to a norm, and gives the norm before; None where `step` does it.
        step: Steps the optimizer.
        zero_grad: Resets the gradients.
        was_skipped: Whether the last step was skipped, as its gradients were too large for fp16; None if none ever is.
        norm: Where `step` clips: the norm of the gradients of the last step, before.
    """

    differentiate: Callable[..., None]
    no_sync: Callable[[], AbstractContextManager[Any]]
    clip: Callable[[list[nn.Parameter], float], Tensor] | None
    step: Callable[..., Any]
    zero_grad: Callable[..., None]
    was_skipped: Callable[[], bool] | None
    norm: Callable[[], Tensor | None] = lambda: None


def updates_of(accelerator: Accelerator, model: nn.Module, optimizer: Any) -> Updates:
    """The updates of a prepared model by a prepared optimizer."""
    no_sync = partial(accelerator.no_sync, model)
    if is_deepspeed(accelerator):
        return _by_deepspeed(model, optimizer)
    if accelerator.scaler is None and accelerator.distributed_type in PLAIN:
        # Accelerate would only pass these calls on, at a cost in every step.
        own = optimizer.optimizer
        return Updates(Tensor.backward, no_sync, nn.utils.clip_grad_norm_, own.step, own.zero_grad, None)

    def clip(parameters: list[nn.Parameter], most: float) -> Tensor:
        norm = accelerator.clip_grad_norm_(parameters, most)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # type: ignore[no-any-return]

    return Updates(
        accelerator.backward, no_sync, clip, optimizer.step, optimizer.zero_grad, lambda: optimizer.step_was_skipped
    )


def _by_deepspeed(engine: Any, optimizer: Any) -> Updates:
    """The engine clips, steps and resets the gradients in one call."""
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
        """The engine has done it."""

    if is_managed:
        engine.set_gradient_accumulation_boundary(is_boundary=True)
    return Updates(
        engine.backward, no_sync, None, engine.step, zero_grad, lambda: bool(optimizer.step_was_skipped), norm
    )

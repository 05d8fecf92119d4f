"""Steps of optimizers, such as LBFGS, that evaluate the loss several times: batches are kept and reused."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, MutableMapping, Sequence
from copy import copy
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor

from accmt.checkpoint.rng import random_state, set_random_state
from accmt.data.batch_size import samples_of
from accmt.data.loaders import Window
from accmt.distributed.strategy import REPLICATED
from accmt.loop.out_of_memory import tried_again
from accmt.loop.step import Stepper
from accmt.module import AcceleratorModule, ExtendedAcceleratorModule


def needs_closure(optimizer: Any) -> bool:
    """Return whether the optimizer's `step` requires a function that evaluates the loss."""
    parameters = list(inspect.signature(type(optimizer).step).parameters.values())[1:]
    return any(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)


def closure_problem(optimizer: Any, module: AcceleratorModule, accelerator: Accelerator) -> str | None:
    """Return why an optimizer that needs a closure cannot train here; None if it can, or needs none."""
    if not needs_closure(optimizer):
        return None
    several = f"{type(optimizer).__name__} evaluates the loss several times a step"
    if isinstance(module, ExtendedAcceleratorModule):
        return f"{several}, and {type(module).__name__} makes its optimizer steps itself: use another optimizer"
    if accelerator.scaler is not None:
        return f'{several}, which the scaled losses of fp16 do not allow: give mixed_precision="bf16", or "no"'
    if accelerator.distributed_type not in (DistributedType.NO, *REPLICATED):
        engine = accelerator.distributed_type.value
        return f"{several} with all parameters, which {engine} shards: launch without it, or use another optimizer"
    return None


class ClosureStepper(Stepper):
    """Stepper for optimizers that evaluate the loss of a window's batches several times.

    Each evaluation starts from the same random state, so that all compute the same function (dropout included). As in
    any other step, gradients are averaged over batches and processes, and clipped. Such an optimizer relies on the
    gradients of the loss itself, which clipped ones are not: prefer `clip_grad=None`.

    The hooks around `training_step` and `backward` are called in every evaluation, those around the optimizer step, the
    scheduler step and the reset of gradients once a step. The training loss and `grad_norm` are those of the first
    evaluation, with the parameters from before the step; `state.train_step` counts each batch once. Whatever a forward
    pass changes in the model (running statistics of a BatchNorm) changes in every evaluation.
    """

    def step(self, window: Window) -> None:
        """Train on the batches of a window and update the parameters once."""
        read, first = list(window.batches), self._state.train_step
        batches = [batch for _, batch in read]
        samples = [samples_of(batch, told, self._module) for told, batch in read]
        random = random_state(self._accelerator.device)

        def evaluate() -> Tensor:
            with torch.enable_grad():
                return tried_again(partial(self._pass, batches, first, window.is_last, random), self._may_repeat)

        losses = evaluate()
        grad_norm = self.grad_norm
        for loss, number in zip(losses, samples, strict=True):
            self.losses.add(loss, number)
        # LBFGS first evaluates the current parameters, which has been done already.
        known = [losses] if isinstance(self._optimizer.optimizer, torch.optim.LBFGS) else []
        self._hooks.on_before_optimizer_step(self._optimizer)
        frozen = self._trained.frozen()
        self._updates.step(lambda: self._mean(known.pop() if known else evaluate()))
        with torch.no_grad():
            for parameter, value in frozen:
                parameter.copy_(value)  # the history of LBFGS would move it
        self._hooks.on_after_optimizer_step(self._optimizer)
        self._average()
        self.grad_norm = grad_norm
        self.step_scheduler()
        self.zero_grad(self.options.set_to_none)

    def _pass(self, batches: Sequence[Any], first: int, is_last: bool, random: Mapping[str, Tensor]) -> Tensor:
        """Compute the losses of the batches with fresh gradients."""
        set_random_state(random, self._accelerator.device)
        self._updates.zero_grad(set_to_none=self.options.set_to_none)
        self._state.train_step = first
        losses = []
        for number, batch in enumerate(batches, start=1):
            last = number == len(batches)
            self._state.is_last_training_batch = last and is_last
            losses.append(self._learn(_own(batch), len(batches), last).detach())
            self._state.train_step += 1
        self._finish_gradients()
        return torch.stack(losses)

    def _mean(self, losses: Tensor) -> Tensor:
        """Return the loss that the optimizer decides by: the same on all processes, so that all decide alike."""
        return self._accelerator.reduce(losses.mean(), reduction="mean")  # type: ignore[no-any-return]


def _own(batch: Any) -> Any:
    """Copy the dictionaries and lists of a batch: a training step may remove items from them."""
    if isinstance(batch, MutableMapping):
        own = copy(batch)
        for key, value in batch.items():
            own[key] = _own(value)
        return own
    return type(batch)(map(_own, batch)) if type(batch) in (list, tuple) else batch

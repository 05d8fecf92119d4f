"""One optimizer step: forward and backward of each batch of a window, clipping, optimizer, scheduler."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType, send_to_device
from torch import Tensor, nn

from accmt.loop.data import Window
from accmt.loop.hooks import Hooks, add_note
from accmt.loop.losses import LossMeter
from accmt.module import AcceleratorModule
from accmt.states import TrainingState

_PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


@dataclass(frozen=True, slots=True)
class StepOptions:
    """How an optimizer step is made."""

    clip_grad: float | None
    set_to_none: bool
    place_batches: bool
    scheduler_per_epoch: bool


class Stepper:
    """Makes optimizer steps. `grad_norm` is that of the last step, before clipping, on the device."""

    def __init__(
        self,
        module: AcceleratorModule,
        accelerator: Accelerator,
        optimizer: Any,
        scheduler: Any | None,
        options: StepOptions,
        hooks: Hooks,
        state: TrainingState,
    ) -> None:
        self._module = module
        self._model: nn.Module = module.model
        self._accelerator = accelerator
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._options = options
        self._hooks = hooks
        self._state = state
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.places_batches = options.place_batches and accelerator.device.type != "cpu"
        # Without scaling or sharding Accelerate only passes these calls on, at a cost in every step.
        plain = accelerator.scaler is None and accelerator.distributed_type in _PLAIN
        self._differentiate = Tensor.backward if plain else accelerator.backward
        self._clip = nn.utils.clip_grad_norm_ if plain else accelerator.clip_grad_norm_
        self._updater = optimizer.optimizer if plain else optimizer
        self._skips_steps = not plain
        self.losses = LossMeter(accelerator.device)
        self.grad_norm: Tensor | None = None

    @property
    def learning_rate(self) -> float:
        """That of the first parameter group."""
        return float(self._optimizer.param_groups[0]["lr"])

    def step(self, window: Window) -> None:
        """Train on the batches of a window and update the parameters once."""
        for number, batch in enumerate(window.batches, start=1):
            last = number == window.size
            self._state.is_last_training_batch = last and window.is_last
            with nullcontext() if last else self._accelerator.no_sync(self._model):
                self._backward(self._forward(batch), window.size)
            self._state.train_step += 1
        self._update()

    def end_epoch(self) -> None:
        """Step a scheduler that steps once an epoch."""
        if self._options.scheduler_per_epoch:
            self._step_scheduler()

    def _forward(self, batch: Any) -> Tensor:
        if self.places_batches:
            batch = send_to_device(batch, self._accelerator.device, non_blocking=True)
        self._hooks.on_before_training_step(batch)
        try:
            loss = self._module.training_step(batch)
            if not isinstance(loss, Tensor) or loss.dim() or not loss.requires_grad:
                loss = _scalar(loss, type(self._module).__name__)
        except Exception as error:
            add_note(error, f"{type(self._module).__name__}.training_step", self._state)
            raise
        self.losses.add(loss)
        self._hooks.on_after_training_step()
        return loss

    def _backward(self, loss: Tensor, share: int) -> None:
        self._hooks.on_before_backward(loss)
        self._differentiate(loss if share == 1 else loss / share)
        self._hooks.on_after_backward()

    def _update(self) -> None:
        hooks, optimizer = self._hooks, self._optimizer
        if self._options.clip_grad is not None:
            self.grad_norm = self._clip(self._parameters, self._options.clip_grad)
        hooks.on_before_optimizer_step(optimizer)
        self._updater.step()
        hooks.on_after_optimizer_step(optimizer)
        if not self._options.scheduler_per_epoch and not (self._skips_steps and optimizer.step_was_skipped):
            self._step_scheduler()
        hooks.on_before_zero_grad(optimizer)
        self._updater.zero_grad(set_to_none=self._options.set_to_none)
        hooks.on_after_zero_grad(optimizer)

    def _step_scheduler(self) -> None:
        if self._scheduler is None:
            return
        self._hooks.on_before_scheduler_step(self._scheduler)
        self._scheduler.step()
        self._hooks.on_after_scheduler_step(self._scheduler)


def _scalar(loss: object, module: str) -> Tensor:
    """A loss of one element as a scalar; everything else that is no loss is an error."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"{module}.training_step must return a scalar tensor, not {type(loss).__name__}")
    if loss.numel() != 1:
        raise ValueError(f"{module}.training_step must return a scalar tensor, not one of shape {tuple(loss.shape)}")
    if not loss.requires_grad:
        raise ValueError(f"the loss of {module}.training_step depends on no trained parameter: was it detached?")
    return loss.reshape(())

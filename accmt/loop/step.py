"""One optimizer step: forward and backward of each batch of a window, clipping, optimizer, scheduler."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from accmt.checkpoint.optimizer_state import laid_out_as
from accmt.data.batch_size import samples_of
from accmt.data.device import DeviceTransfer
from accmt.data.loaders import Window
from accmt.distributed.gradient_averaging import average_gradients
from accmt.distributed.strategy import REPLICATED, alike, local
from accmt.hyperparameters.schedulers import follows_metric
from accmt.loop.gradient_backends import updates_of
from accmt.loop.hooks import TRAINING_DATA, Hooks, add_note, loading, name_of_step
from accmt.loop.learning_rate import Schedule
from accmt.loop.means import LossMeter, TrainingMetrics
from accmt.loop.moving_average import MovingAverage
from accmt.loop.out_of_memory import may_repeat
from accmt.loop.profiling import StepProfiler
from accmt.loop.trainable_parameters import Beside, Trained
from accmt.module import AcceleratorModule

_SYNCHRONIZED = nullcontext()


@dataclass(frozen=True, slots=True)
class StepOptions:
    """Options of an optimizer step.

    Attributes:
        clip_grad: Maximum norm of all gradients; None for no clipping.
        clip_value: Maximum absolute value of each element of the gradients; None for no clipping.
        set_to_none: Reset gradients to None instead of zero.
        place_batches: Move batches to the device.
        prepare_batches: Convert batches to the precision of the model, if an engine needs that.
        scheduler_per_epoch: The scheduler steps once an epoch.
        through_wrapper: The module calls the prepared model, not the bare one.
        measures_norm: Compute the norm of the gradients, even without clipping.
        repeats: Retry a step once if it runs out of memory.
        ema_decay: The decay of a moving average of the weights; None for none.
    """

    clip_grad: float | None
    clip_value: float | None
    set_to_none: bool
    place_batches: bool
    prepare_batches: bool
    scheduler_per_epoch: bool
    through_wrapper: bool
    measures_norm: bool
    repeats: bool
    ema_decay: float | None

    @property
    def norm_limit(self) -> float | None:
        """The norm to clip gradients to: infinite if it is only measured, None for neither."""
        return math.inf if self.clip_grad is None and self.measures_norm else self.clip_grad


class Stepper:
    """Maker of optimizer steps. `grad_norm` is that of the last step, before clipping, on the device; `profiler`
    follows some of the steps, if any are to be profiled; `average` is that of the weights, if there is one.

    Args:
        module: The module, which knows its Accelerator and its state.
        model: The prepared model.
        optimizer: The prepared optimizer.
        schedule: The scheduler, if there is one.
        options: The options of a step.
        hooks: The callbacks.
        beside: The parameters that a step may train besides those of the model.
        means: The training losses, and the metrics that the module logs.
    """

    def __init__(
        self,
        module: AcceleratorModule,
        model: nn.Module,
        optimizer: Any,
        schedule: Schedule,
        options: StepOptions,
        hooks: Hooks,
        beside: Beside,
        means: tuple[LossMeter, TrainingMetrics],
    ) -> None:
        self._module = module
        self._model = model
        self._accelerator = accelerator = module.accelerator
        self._state = module.state
        self._optimizer = optimizer
        self._schedule = schedule
        self._follows = schedule.scheduler is not None and follows_metric(schedule.scheduler)
        self.options = options
        self._limit = options.norm_limit
        self._hooks = hooks
        self._may_freeze = hooks.calls("on_before_optimizer_step")
        self._beside = beside
        through_wrapper = options.through_wrapper
        self._trained = Trained(module, model, optimizer.optimizer, schedule, beside, through_wrapper=through_wrapper)
        self.place = DeviceTransfer.of(accelerator, moves=options.place_batches, converts=options.prepare_batches)
        self._places = bool(self.place)
        self._updates = updates_of(accelerator, model, optimizer)
        self._differentiate = self._updates.differentiate
        self._replicated = accelerator.distributed_type in REPLICATED
        self._shares_gradients = False
        self.losses, self.metrics = means
        self.grad_norm: Tensor | None = None
        self.profiler: StepProfiler | None = None
        self.average: MovingAverage | None = None

    @property
    def learning_rate(self) -> float:
        """Learning rate of the first parameter group; NaN if the optimizer chooses its own, as Adafactor can."""
        rate = self._optimizer.param_groups[0].get("lr")
        return math.nan if rate is None else float(rate)

    @property
    def rate_at_hand(self) -> float:
        """The learning rate; NaN also if it is on a device, for which another thread must not wait."""
        rate = self._optimizer.param_groups[0].get("lr")
        return math.nan if isinstance(rate, Tensor) and rate.device.type != "cpu" else self.learning_rate

    def step(self, window: Window) -> None:
        """Train on the batches of a window and update the parameters once."""
        state, size = self._state, window.size
        batches: list[Any] = []
        for told, batch in loading(window.batches, TRAINING_DATA, state):
            batches.append(batch)
            last = len(batches) == size
            samples = samples_of(batch, told, self._module)
            state.is_last_training_batch = last and window.is_last
            self.losses.add(self._learn_last(batches, size), samples)
            state.train_step += 1
        self._update()

    def held(self) -> list[nn.Parameter]:
        """Return the parameters that are trained now."""
        return self._trained.held()

    def averaged(self) -> AbstractContextManager[None]:
        """Return a context in which the parameters have the values of the moving average, if there is one."""
        return nullcontext() if self.average is None else self.average.applied()

    def start_epoch(self) -> None:
        """Look up the current parameters: a model may have grown."""
        self._trained.look()

    def end_epoch(self) -> None:
        """Step a scheduler that steps once an epoch."""
        if self.options.scheduler_per_epoch and not self._follows:
            self._step_scheduler()

    def follow(self, value: float) -> None:
        """Step a scheduler that follows a metric, after an evaluation."""
        self._step_scheduler(value)

    def gradients(self) -> dict[str, Tensor]:
        """Return the gradients that exist between two steps, by parameter name; part of a checkpoint."""
        found = {name: parameter.grad for name, parameter in self._beside.named().items()}
        return {name: local(gradient) for name, gradient in found.items() if gradient is not None}

    def check_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """Check that gradients of a checkpoint belong to parameters here, with their shapes."""
        named = self._beside.named()
        for name, gradient in gradients.items():
            if name not in named:
                raise ValueError(f"{name}, which has a gradient, is not a parameter here")
            if gradient.shape != named[name].shape and not hasattr(named[name], "to_local"):
                shapes = f"{tuple(gradient.shape)}, and the parameter {tuple(named[name].shape)}"
                raise ValueError(f"the gradient of {name} has the shape {shapes}")

    def take_up(self, gradients: Mapping[str, Tensor]) -> None:
        """Restore the gradients of a checkpoint."""
        named = self._beside.named()
        for name, gradient in gradients.items():
            parameter = named[name]
            gradient = laid_out_as(parameter, gradient.to(parameter.device, parameter.dtype))
            parameter.grad = alike(gradient, parameter)

    def put_back(self, gradients: Mapping[str, Tensor]) -> None:
        """Restore the gradients as they were between two steps."""
        for parameter in self._trained.numbered().values():
            parameter.grad = None
        self.take_up(gradients)

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Add the gradients of a loss."""
        self._hooks.on_before_backward(loss)
        self._differentiate(loss, **kwargs)
        self._hooks.on_after_backward()

    def step_optimizer(self) -> None:
        """Clip the gradients and step the optimizer."""
        self._finish_gradients()
        self._hooks.on_before_optimizer_step(self._optimizer)
        if self._may_freeze:
            self._trained.drop_frozen()
        self._updates.step()
        if self._updates.clip is None:
            self.grad_norm = self._updates.norm()
        self._hooks.on_after_optimizer_step(self._optimizer)

    def step_scheduler(self) -> None:
        """Step a scheduler that steps with the optimizer, unless the optimizer's step was skipped."""
        was_skipped = self._updates.was_skipped
        if self._follows:
            return
        if not self.options.scheduler_per_epoch and (was_skipped is None or not was_skipped()):
            self._step_scheduler()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients."""
        self._hooks.on_before_zero_grad(self._optimizer)
        self._updates.zero_grad(set_to_none=set_to_none)
        self._hooks.on_after_zero_grad(self._optimizer)

    def _finish_gradients(self) -> None:
        """Average the gradients over the processes, if no wrapper has done so, and clip them."""
        held = self._trained.drop_frozen()
        self._trained.check_unheld()
        if self._replicated:
            average_gradients(self._trained.outside())
        if self._limit is not None and self._updates.clip is not None:
            self.grad_norm = self._updates.clip(held, self._limit)
        if self.options.clip_value is not None:
            # The norm was taken of unscaled gradients already, and they can be unscaled only once.
            clip = self._updates.clip_value if self._limit is None else nn.utils.clip_grad_value_
            clip(held, self.options.clip_value)

    def _learn(self, batch: Any, share: int, last: bool) -> Tensor:
        """Add the gradients of a batch, one of `share` in its window; the last one averages over the processes."""
        self._shares_gradients = False
        with _SYNCHRONIZED if last else self._updates.no_sync():
            loss = self._forward(batch)
            self._shares_gradients = last and self._replicated
            self.backward(loss if share == 1 else loss / share)
        return loss

    def _learn_last(self, batches: list[Any], share: int) -> Tensor:
        """Add the gradients of the last batch. If it runs out of memory, all batches of the window so far are computed
        again, because their gradients may be incomplete."""
        try:
            return self._learn(batches[-1], share, last=len(batches) == share)
        except RuntimeError as error:
            if not may_repeat(error, self._may_repeat):
                raise
        self._updates.zero_grad(set_to_none=self.options.set_to_none)
        for number, batch in enumerate(batches, start=1):
            loss = self._learn(batch, share, last=number == share)
        return loss

    def _may_repeat(self) -> bool:
        """Return whether a failed step may be retried: no other process waits for data that it would send twice."""
        if self._accelerator.num_processes == 1 or not self.options.repeats:
            return self.options.repeats
        buffers = self.options.through_wrapper and next(self._model.buffers(), None) is not None
        return self._replicated and not buffers and not self._shares_gradients

    def _forward(self, batch: Any) -> Tensor:
        if self._places:
            batch = self.place(batch)
        self._hooks.on_before_training_step(batch)
        self._trained.follow()
        try:
            loss = self._module.training_step(batch)
            if not isinstance(loss, Tensor) or loss.dim() or not loss.requires_grad:
                loss = self._scalar(loss)
        except Exception as error:
            add_note(error, name_of_step(self._module, "training_step"), self._state, batch)
            raise
        self._hooks.on_after_training_step()
        return loss

    def _scalar(self, loss: object) -> Tensor:
        """Return a loss of one element as a scalar; anything else that is not a loss is an error."""
        module = type(self._module).__name__
        loss = single_value(loss, module)
        if not loss.requires_grad:
            raise ValueError(f"the loss of {module}.training_step depends on no trained parameter: was it detached?")
        return loss

    def _update(self) -> None:
        self.step_optimizer()
        self._average()
        self.step_scheduler()
        self.zero_grad(self.options.set_to_none)

    def _average(self) -> None:
        """Update the moving average, unless the optimizer's step was skipped."""
        was_skipped = self._updates.was_skipped
        if self.average is not None and (was_skipped is None or not was_skipped()):
            self.average.update(self.held())

    def _step_scheduler(self, *values: float) -> None:
        scheduler = self._schedule.scheduler
        if scheduler is None:
            return
        self._hooks.on_before_scheduler_step(scheduler)
        self._trained.follow_groups()
        scheduler.step(*values)
        self._hooks.on_after_scheduler_step(scheduler)


def single_value(loss: object, module: str) -> Tensor:
    """Return a loss of one element as a scalar.

    Raises:
        TypeError, ValueError: It is something else.
    """
    if not isinstance(loss, Tensor):
        raise TypeError(f"{module}.training_step must return a scalar tensor, not {kind_of(loss)}")
    if loss.numel() != 1:
        raise ValueError(f"{module}.training_step must return a scalar tensor, not one of shape {tuple(loss.shape)}")
    return loss.reshape(())


def kind_of(returned: object) -> str:
    """Name the type of what a step returned, with the usual reason for some."""
    if returned is None:
        return "None: is a return statement missing?"
    hints = {dict: ": return its loss", float: ": return the tensor, not its item()"}
    return f"{type(returned).__name__}{hints.get(type(returned), '')}"

"""Callbacks: hooks that run a user's code at defined moments of a training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from accmt.module import AcceleratorModule
    from accmt.states import TrainerProtocol, TrainingState


class Callback:
    """Base class of callbacks: override the hooks of interest; by default every hook does nothing.

    Hooks run on every process (see `accmt.decorators` to restrict them to one). The trainer sets the attributes
    before `on_fit_start`.

    Attributes:
        module: The module being trained.
        trainer: The trainer; `self.trainer.stop(reason)` ends the training after this step.
        state: The state of the training.
    """

    module: AcceleratorModule = None  # type: ignore[assignment]  # set by the trainer
    trainer: TrainerProtocol = None  # type: ignore[assignment]
    state: TrainingState = None  # type: ignore[assignment]

    def __init__(self, module: AcceleratorModule | None = None, state: TrainingState | None = None) -> None:
        if module is not None:
            self.module = module
        if state is not None:
            self.state = state

    def on_fit_start(self) -> None:
        """Called when the training starts."""

    def on_fit_end(self) -> None:
        """Called when the training has ended: it is complete, or a rule stopped it."""

    def on_before_backward(self, loss: Tensor) -> None:
        """Called before the gradients of a batch are computed; `loss` is the scalar that `training_step` returned."""

    def on_after_backward(self) -> None:
        """Called after the gradients of a batch were computed."""

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Called before an optimizer step, after clipping."""

    def on_after_optimizer_step(self, optimizer: Optimizer) -> None:
        """Called after an optimizer step."""

    def on_before_scheduler_step(self, scheduler: LRScheduler) -> None:
        """Called before the learning rate scheduler steps."""

    def on_after_scheduler_step(self, scheduler: LRScheduler) -> None:
        """Called after the learning rate scheduler stepped."""

    def on_before_zero_grad(self, optimizer: Optimizer) -> None:
        """Called before the gradients are reset."""

    def on_after_zero_grad(self, optimizer: Optimizer) -> None:
        """Called after the gradients were reset."""

    def on_runtime_error(self, exception: Exception) -> None:
        """Called when the training raised a RuntimeError other than out of memory."""

    def on_cuda_out_of_memory(self, exception: Exception) -> None:
        """Called when the training ran out of GPU memory."""

    def on_keyboard_interrupt(self, exception: BaseException) -> None:
        """Called when Ctrl-C interrupted the training."""

    def on_exception(self, exception: Exception) -> None:
        """Called on any other exception, including SystemExit; SIGTERM arrives as `accmt.Terminated`, a SystemExit."""

    def on_resume(self) -> None:
        """Called when the training resumes from a checkpoint, after `on_fit_start`."""

    def on_save_checkpoint(self) -> None:
        """Called when a checkpoint was made."""

    def on_before_training_step(self, batch: Any) -> None:
        """Called before `training_step`."""

    def on_after_training_step(self) -> None:
        """Called after `training_step`."""

    def on_before_validation_step(self, batch: Any) -> None:
        """Called before `validation_step`."""

    def on_after_validation_step(self) -> None:
        """Called after `validation_step`."""

    def on_epoch_start(self) -> None:
        """Called when an epoch starts."""

    def on_epoch_end(self) -> None:
        """Called when an epoch has ended, after its final evaluation."""

    def on_evaluation_start(self) -> None:
        """Called when an evaluation of all validation datasets starts."""

    def on_evaluation_end(self) -> None:
        """Called when an evaluation has ended; `state` holds its values."""


HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_"))

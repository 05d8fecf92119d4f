"""Callbacks: the moments of a training at which a user's code can run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from accmt.module import AcceleratorModule
    from accmt.states import TrainingState
    from accmt.trainer import Trainer


class Callback:
    """Override the methods for the moments of interest; every one of them does nothing here.

    The methods run on every process (see `accmt.decorators` to run them on one). The trainer sets the attributes before
    `on_fit_start`.

    Attributes:
        module: The module that is trained.
        trainer: The trainer; `self.trainer.stop(reason)` ends the training after this step.
        state: The state of the training.
    """

    module: AcceleratorModule = None  # type: ignore[assignment]  # set by the trainer
    trainer: Trainer = None  # type: ignore[assignment]
    state: TrainingState = None  # type: ignore[assignment]

    def __init__(self, module: AcceleratorModule | None = None, state: TrainingState | None = None) -> None:
        if module is not None:
            self.module = module
        if state is not None:
            self.state = state

    def on_fit_start(self) -> None:
        """The training starts."""

    def on_fit_end(self) -> None:
        """The training has come to its end, by itself or because a rule stopped it."""

    def on_before_backward(self, loss: Tensor) -> None:
        """Before the gradients of a batch are computed; `loss` is the scalar that `training_step` returned."""

    def on_after_backward(self) -> None:
        """After the gradients of a batch were computed."""

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Before an optimizer step, after clipping."""

    def on_after_optimizer_step(self, optimizer: Optimizer) -> None:
        """After an optimizer step."""

    def on_before_scheduler_step(self, scheduler: LRScheduler) -> None:
        """Before the learning rate scheduler steps."""

    def on_after_scheduler_step(self, scheduler: LRScheduler) -> None:
        """After the learning rate scheduler stepped."""

    def on_before_zero_grad(self, optimizer: Optimizer) -> None:
        """Before the gradients are reset."""

    def on_after_zero_grad(self, optimizer: Optimizer) -> None:
        """After the gradients were reset."""

    def on_runtime_error(self, exception: Exception) -> None:
        """The training raised a RuntimeError, other than out of memory."""

    def on_cuda_out_of_memory(self, exception: Exception) -> None:
        """The training ran out of GPU memory."""

    def on_keyboard_interrupt(self, exception: BaseException) -> None:
        """The training was interrupted by Ctrl-C."""

    def on_exception(self, exception: Exception) -> None:
        """The training raised any other exception, also a SystemExit, or SIGTERM ended it: then it is an
        `accmt.Terminated`, which is a SystemExit."""

    def on_resume(self) -> None:
        """The training continues from a checkpoint; called after `on_fit_start`."""

    def on_save_checkpoint(self) -> None:
        """A checkpoint was made."""

    def on_before_training_step(self, batch: Any) -> None:
        """Before `training_step`."""

    def on_after_training_step(self) -> None:
        """After `training_step`."""

    def on_before_validation_step(self, batch: Any) -> None:
        """Before `validation_step`."""

    def on_after_validation_step(self) -> None:
        """After `validation_step`."""

    def on_epoch_start(self) -> None:
        """An epoch starts."""

    def on_epoch_end(self) -> None:
        """An epoch has ended, after the evaluation at its end."""

    def on_evaluation_start(self) -> None:
        """An evaluation starts, of all validation datasets."""

    def on_evaluation_end(self) -> None:
        """An evaluation has ended; `state` holds its values."""


HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_"))

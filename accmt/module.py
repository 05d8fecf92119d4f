"""The module that a user writes: a model, a training step and a validation step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

if TYPE_CHECKING:
    from collections.abc import Callable

    from accelerate import Accelerator

    from accmt.states import TrainingState
    from accmt.tracking.tracker import Tracker


class AcceleratorModule:
    """What is trained, without a loop: the constructor sets `self.model`, `training_step` returns a loss.

    `super().__init__()` need not be called. The trainer sets `state`, `device`, `accelerator` and `tracker` before the
    first step. `self.model` is the prepared model while training, so call `self.model(...)`, not a reference that was
    kept from before.

    Attributes:
        model: The model (a `torch.nn.Module`).
        teacher: A second model without gradients, for distillation; not part of checkpoints.
        state: The state of the training.
        device: The device of this process.
        accelerator: The Accelerator.
        tracker: The tracker, with `log(values, step)`.
        status_dict: `epoch_step`, the index of the current batch in its epoch.
    """

    model: nn.Module
    teacher: nn.Module | None = None
    state: TrainingState = None  # type: ignore[assignment]  # set by the trainer
    device: torch.device = torch.device("cpu")
    accelerator: Accelerator = None
    tracker: Tracker = None  # type: ignore[assignment]
    collate_fn_train: Callable[[list[Any]], Any] | None = None
    collate_fn_val: Callable[[list[Any]], Any] | None = None
    _log_every: int | None = None

    def training_step(self, batch: Any) -> Tensor:
        """The loss of one batch, a scalar tensor."""
        raise NotImplementedError(f"{type(self).__name__} has no training_step")

    def validation_step(self, key: str, batch: Any) -> dict[str, Any] | Tensor:
        """What one batch of the validation dataset `key` brings.

        Returns:
            A dictionary with `loss` (a scalar tensor) and, for each metric of this dataset, the arguments of its
            `compute` for this batch, such as `"accuracy": (predictions, targets)`, whose first dimension is the samples
            of the batch. Or the loss alone.
        """
        raise NotImplementedError(f"{type(self).__name__} has no validation_step")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The flow of data; by default that of `self.model`."""
        return self.model(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def __len__(self) -> int:
        """The number of parameters of the model."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def __bool__(self) -> bool:
        return True

    def freeze(self, module: nn.Module) -> None:
        """Exclude all parameters of a module from training."""
        module.requires_grad_(False)

    def unfreeze(self, module: nn.Module) -> None:
        """Include all parameters of a module in training."""
        module.requires_grad_(True)

    def get_optimizer(self) -> Optimizer | None:
        """An optimizer to use instead of the one of the hyperparameters; None for that one."""
        return None

    def get_train_dataloader(self, dataset: Dataset[Any] | None) -> DataLoader[Any] | None:
        """A loader for training instead of the trainer's; None for that one. `dataset` is what `fit` was given."""
        return None

    def get_validation_dataloader(self, dataset: Dataset[Any]) -> DataLoader[Any] | None:
        """A loader for a validation dataset instead of the trainer's; None for that one."""
        return None

    @property
    def status_dict(self) -> dict[str, int]:
        """`epoch_step`: the index of the current batch in its epoch, from 0."""
        return {"epoch_step": self.state.train_step}

    def log(
        self, values: dict[str, Tensor | float | int], step: int, reduction: Literal["sum", "mean"] = "mean"
    ) -> None:
        """Send values to the tracker, at the trainer's logging steps (`log_every`); call it on every process.

        Args:
            values: Name -> value. Tensors are reduced over the processes; of other values the main process's is sent.
            step: The step to log at, such as `self.state.global_step`.
            reduction: How tensors are reduced.

        Raises:
            ValueError: An unknown reduction, or a tensor with more than one element.
        """
        if reduction not in ("sum", "mean"):
            raise ValueError(f"reduction is {reduction!r}: it is 'sum' or 'mean'")
        if self._log_every is None or step % self._log_every != 0:
            return
        scalars = {name: self._reduced(name, value, reduction) for name, value in values.items()}
        self.tracker.log(scalars, step)

    def _reduced(self, name: str, value: Tensor | float, reduction: str) -> float:
        if not isinstance(value, Tensor):
            return float(value)
        if value.numel() != 1:
            raise ValueError(f"'{name}' has the shape {tuple(value.shape)}: only single values can be logged")
        reduced = self.accelerator.reduce(value.detach().to(self.device), reduction=reduction)
        return float(reduced)

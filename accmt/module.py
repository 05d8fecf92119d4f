"""Base classes of the user's module: a model, a training step and a validation step."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import astuple
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset

from accmt.checkpoint.object_state import NetworkOwner
from accmt.earlier import Gone
from accmt.html_tables import html_table
from accmt.model_summary import ModelSummary, summarize
from accmt.padding import pad

if TYPE_CHECKING:
    from collections.abc import Callable

    from accelerate import Accelerator

    from accmt.states import Tracker, TrainerProtocol, TrainingState


class TrainerLink:
    """Weak reference to the trainer, dropped when a module is pickled or copied."""

    def __init__(self, trainer: TrainerProtocol | None = None) -> None:
        self._trainer = None if trainer is None else weakref.ref(trainer)

    def __call__(self) -> TrainerProtocol | None:
        return None if self._trainer is None else self._trainer()

    def __reduce__(self) -> tuple[type[TrainerLink], tuple[()]]:
        return TrainerLink, ()


class _TrainerAttribute:
    """Descriptor that returns a module's trainer; a module may set its own attribute `trainer` instead."""

    def __get__(self, module: AcceleratorModule | None, owner: type[AcceleratorModule]) -> TrainerProtocol:
        return None if module is None else module._trainer()  # type: ignore[return-value]  # set by the trainer


class AcceleratorModule(NetworkOwner):
    """A model and its steps, without a loop: the constructor sets `self.model`, `training_step` returns a loss.

    `super().__init__()` need not be called. The trainer sets `state`, `device`, `accelerator` and `tracker` before the
    first step. While training, `self.model` is the prepared model: call `self.model(...)`, not a reference saved
    earlier.

    Attributes:
        model: The model (a `torch.nn.Module`).
        teacher: A second model without gradients, for distillation; not part of checkpoints.
        state: The state of the training.
        device: The device of this process.
        accelerator: The Accelerator.
        tracker: The tracker, with `log(values, step)`.
        trainer: The trainer, for `self.trainer.stop(reason)`; None before any training.
        status_dict: `epoch_step`, the index of the current batch in its epoch.
    """

    model: nn.Module
    teacher: nn.Module | None = None
    state: TrainingState = None  # type: ignore[assignment]  # set by the trainer
    device: torch.device = torch.device("cpu")
    accelerator: Accelerator = None
    tracker: Tracker = None  # type: ignore[assignment]
    trainer = _TrainerAttribute()
    collate_fn_train: Callable[[list[Any]], Any] | None = None
    collate_fn_val: Callable[[list[Any]], Any] | None = None
    _log_every: int | None = None  # steps between two logs; None if none are made, or if only the loop knows when
    _logged: dict[str, tuple[Tensor | float, int, Literal["sum", "mean"]]] | None = None  # kept if only the loop knows
    _training_metrics: _TrainingMetrics | None = None
    _trainer = TrainerLink()
    from_hf = Gone('give its name to fit: trainer.fit(("name", "AutoModelForSequenceClassification"), ...)')

    def training_step(self, batch: Any) -> Tensor:
        """Return the loss of one batch, a scalar tensor."""
        raise NotImplementedError(f"{type(self).__name__} has no training_step")

    def validation_step(self, key: str, batch: Any) -> dict[str, Any] | Tensor:
        """Compute the loss and the metric inputs of one batch of the validation dataset `key`.

        Returns:
            A dictionary with `loss` (a scalar tensor, or a vector with one loss for each sample, whose mean is
            `valid_loss`) and, for each metric of this dataset, the arguments of its `compute` for this batch, such as
            `"accuracy": (predictions, targets)`; their first dimension is the samples of the batch. Or only the loss.
        """
        raise NotImplementedError(f"{type(self).__name__} has no validation_step")

    def predict_step(self, batch: Any) -> Any:
        """Return the predictions for one batch, for `Trainer.predict`: tensors whose first dimension is the samples,
        dictionaries or tuples of these, or a list with one item for each sample."""
        raise NotImplementedError(f"{type(self).__name__} has no predict_step")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward pass; by default that of `self.model`."""
        return self.model(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def __len__(self) -> int:
        """Return the number of parameters of the model."""
        # Under DeepSpeed's stage 3 a process holds only a shard of each parameter; `ds_numel` is the full size.
        return sum(int(getattr(parameter, "ds_numel", parameter.numel())) for parameter in self.model.parameters())

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        model = getattr(self, "model", None)
        inner = f"{type(model).__name__}, {len(self):,} parameters" if isinstance(model, nn.Module) else "no model yet"
        return f"{type(self).__name__}({inner})"

    def _repr_html_(self) -> str:
        has_model = isinstance(getattr(self, "model", None), nn.Module)
        rows = map(astuple, self.summary().parts if has_model else ())
        return html_table(repr(self), ("part", "class", "parameters", "trainable", "bytes"), rows)

    def summary(self, depth: int = 1) -> ModelSummary:
        """Return the parts of the module's networks, with their class, parameters and size; `print` it as a table.

        Args:
            depth: The levels of parts into which `self.model` is divided; 0 for none.
        """
        return summarize(self, depth)

    def freeze(self, module: nn.Module) -> None:
        """Exclude all parameters of a module from training."""
        module.requires_grad_(False)

    def unfreeze(self, module: nn.Module) -> None:
        """Include all parameters of a module in training."""
        module.requires_grad_(True)

    def get_optimizer(self) -> Optimizer | None:
        """Return an optimizer to use instead of the one in the hyperparameters, or None to use that."""
        return None

    def get_scheduler(self, optimizer: Optimizer, steps_per_epoch: int | None, epochs: int) -> LRScheduler | None:
        """Return a learning rate scheduler to use instead of the one in the hyperparameters, or None to use that.

        Args:
            optimizer: The optimizer of the training.
            steps_per_epoch: Optimizer steps per epoch; None if the length of the data is unknown, or epochs differ.
            epochs: Epochs of the training.
        """
        return None

    def get_train_dataloader(self, dataset: Dataset[Any] | None) -> DataLoader[Any] | None:
        """Return a training loader to use instead of the trainer's, or None. `dataset` is the one given to `fit`."""
        return None

    def get_validation_dataloader(self, dataset: Dataset[Any]) -> DataLoader[Any] | None:
        """Return a loader for a validation dataset to use instead of the trainer's, or None."""
        return None

    def batch_size(self, batch: Any) -> int | None:
        """Return the number of samples in a batch, for loaders that do not know it: loaders without automatic batching
        (`batch_size=None`) and custom loaders. Not called for other loaders.

        Mean losses are weighted by it. None, the default, uses the first dimension of the tensors in the batch; if that
        is ambiguous, an error is raised.
        """
        return None

    @property
    def status_dict(self) -> dict[str, int]:
        """Dictionary with `epoch_step`, the index of the current batch in its epoch, from 0."""
        return {"epoch_step": self.state.train_step}

    def log(
        self, values: dict[str, Tensor | float | int], step: int, reduction: Literal["sum", "mean"] = "mean"
    ) -> None:
        """Send values to the tracker at the trainer's logging steps (`log_every`); call it on every process.

        Values whose names the trainer's `training_metrics` declares count for rules at every call during training. If
        one name is logged several times for a batch, the last value counts. If `log_every` is a text such as "10
        seconds", a logging step is recognized only after it is done: the latest values are sent then.

        Args:
            values: Name -> value. Tensors are reduced over the processes; of other values the main process's is sent.
            step: The step to log at, such as `self.state.global_step`.
            reduction: Reduction of tensors over the processes: "sum" or "mean".

        Raises:
            TypeError: If the values are no dictionary.
            ValueError: If the reduction is unknown, or a tensor has more than one element.
        """
        if not isinstance(values, Mapping):
            example = "self.log({'accuracy': value}, self.state.global_step)"
            raise TypeError(f"log takes a dictionary and the step, as in {example}, not {type(values).__name__}")
        if reduction not in ("sum", "mean"):
            raise ValueError(f"reduction is {reduction!r}: it must be 'sum' or 'mean'")
        if (metrics := self._training_metrics) is not None:
            for name in values.keys() & set(metrics.names):
                metrics.add(name, _single(name, values[name]), self.state.train_step, reduction)
        if self._logged is not None:
            self._logged |= {name: (_kept(name, value), step, reduction) for name, value in values.items()}
        elif self._log_every is not None and step % self._log_every == 0:
            scalars = {name: self._reduced(name, value, reduction) for name, value in values.items()}
            self.tracker.log(scalars, step)

    def _send_logged(self) -> None:
        """Send the latest logged values, for cadences whose logging steps only the loop knows."""
        by_step: dict[int, dict[str, float]] = {}
        logged, self._logged = self._logged, self._logged and {}
        for name, (value, step, reduction) in (logged or {}).items():
            by_step.setdefault(step, {})[name] = self._reduced(name, value, reduction)
        for step, scalars in by_step.items():
            self.tracker.log(scalars, step)

    pad = staticmethod(pad)

    def _reduced(self, name: str, value: Tensor | float, reduction: str) -> float:
        value = _single(name, value)
        if isinstance(value, Tensor):
            value = self.accelerator.reduce(value.detach().to(self.device), reduction=reduction)
        return float(value)


def _single(name: str, value: Tensor | float) -> Tensor | float:
    """Return a logged value if it is a single number.

    Raises:
        ValueError: If it is a tensor with several elements.
    """
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"'{name}' has the shape {tuple(value.shape)}: only single values can be logged")
    return value


def _kept(name: str, value: Tensor | float) -> Tensor | float:
    """Return a snapshot of the value, detached from its graph."""
    value = _single(name, value)
    return value.detach().clone() if isinstance(value, Tensor) else value


class _TrainingMetrics(Protocol):
    """Receiver of the values that rules may use."""

    @property
    def names(self) -> tuple[str, ...]:
        """Declared names."""

    def add(self, name: str, value: Tensor | float, batch: int, reduction: str) -> None:
        """Record a value that was logged for a batch."""


class ManualSteps(Protocol):
    """Operations that the trainer provides to a module that trains manually."""

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Compute gradients."""

    def step_optimizer(self) -> None:
        """Clip the gradients and step the optimizer."""

    def step_scheduler(self) -> None:
        """Step the scheduler."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients."""


class ExtendedAcceleratorModule(AcceleratorModule):
    """A module whose `training_step` computes gradients and updates parameters itself.

        def training_step(self, batch):
            loss = ...
            self.backward(loss)
            self.step()
            return loss

    The returned loss is only recorded. The trainer counts each call of `training_step` as one step, whatever it does;
    `grad_accumulation_steps` cannot be given. To accumulate gradients, update only when it is time to:

            if (self.state.train_step + 1) % 4 == 0 or self.state.is_last_training_batch:
                self.step()

    Gradients are reset before the first `backward` after an optimizer step, unless `zero_grad` was called in between.
    """

    _stepper: ManualSteps = None  # type: ignore[assignment]  # set by the trainer

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Compute and accumulate the gradients of a scalar loss; `kwargs` are passed to `torch.Tensor.backward`."""
        self._stepper.backward(loss, **kwargs)

    def step(self) -> None:
        """Step the optimizer, then the scheduler, if there is one."""
        self.step_optimizer()
        self.step_scheduler()

    def step_optimizer(self) -> None:
        """Clip the gradients as the trainer's `clip_grad` or `clip_grad_value` says, and step the optimizer."""
        self._stepper.step_optimizer()

    def step_scheduler(self) -> None:
        """Step the scheduler, unless there is none or `step_scheduler_per_epoch` leaves it to the trainer."""
        self._stepper.step_scheduler()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, to None or to zero."""
        self._stepper.zero_grad(set_to_none)

"""`HyperParameters`: length of the training, batch sizes, optimizer and scheduler."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim.lr_scheduler import LRScheduler

from accmt.config.errors import Problem, suggests
from accmt.hyperparameters import optimizers, schedulers
from accmt.hyperparameters.fields import validated
from accmt.hyperparameters.optimizers import OPTIMIZERS, OptimizerChoice
from accmt.hyperparameters.plain import comparable, plain_value
from accmt.hyperparameters.schedulers import SCHEDULERS, ScheduleLength, SchedulerChoice


@dataclass(frozen=True, init=False, eq=False)
class HyperParameters:
    """Hyperparameters of a training.

    The values are immutable; `dataclasses.replace(hps, epochs=5)` makes a changed copy. An invalid number, name or type
    is reported here; `problems` checks the arguments of the optimizer and the scheduler, and the trainer calls it.

    Args:
        epochs: Number of passes over the training dataset.
        max_steps: Maximum number of optimizer steps; overrides `epochs` if given.
        batch_size: Samples per batch on each process; two numbers are for training and for evaluation.
        optimizer: One of `Optimizer` or its name, a subclass of torch.optim.Optimizer or its dotted name, or a
            factory `(params, **arguments)`.
        optim_kwargs: Arguments of the optimizer by name, and `no_decay` (see `build_optimizer`). In a training,
            Adagrad, Adam, AdamW and SGD make fused steps where they can; `fused=False` leaves them torch's default.
        scheduler: One of `Scheduler` or its name, a subclass of LRScheduler or its dotted name, or a factory
            `(optimizer, **arguments)`. None for a constant learning rate.
        scheduler_kwargs: Arguments of the scheduler by name, and `warmup_ratio` (see `build_scheduler`).
        step_scheduler_per_epoch: Let the scheduler count epochs instead of optimizer steps.

    Raises:
        ConfigError: If any of these is invalid; it lists all of them.
    """

    epochs: int
    max_steps: int | None
    batch_size: int | tuple[int, int]
    optimizer: OptimizerChoice
    optim_kwargs: dict[str, Any]
    scheduler: SchedulerChoice | None
    scheduler_kwargs: dict[str, Any]
    step_scheduler_per_epoch: bool

    @suggests("HyperParameters", "key")
    def __init__(
        self,
        epochs: int = 1,
        max_steps: int | None = None,
        batch_size: int | tuple[int, int] | list[int] = 1,
        optimizer: OptimizerChoice = "SGD",
        optim_kwargs: Mapping[str, Any] | None = None,
        scheduler: SchedulerChoice | None = None,
        scheduler_kwargs: Mapping[str, Any] | None = None,
        step_scheduler_per_epoch: bool = False,
    ) -> None:
        given = dict(locals())
        del given["self"]
        for name, value in validated(given).items():
            object.__setattr__(self, name, value)

    @property
    def train_batch_size(self) -> int:
        """Samples per training batch on each process."""
        return self.batch_size[0] if isinstance(self.batch_size, tuple) else self.batch_size

    @property
    def eval_batch_size(self) -> int:
        """Samples per evaluation batch on each process."""
        return self.batch_size[1] if isinstance(self.batch_size, tuple) else self.batch_size

    def __eq__(self, other: object) -> bool:
        """Return whether both mean the same training: "AdamW" equals Optimizer.AdamW, and a list equals a tuple."""
        return self._meaning() == other._meaning() if isinstance(other, HyperParameters) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it holds dictionaries

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON and YAML types, in a form that `load_config` reads.

        The optimizer and the scheduler are mappings of `type` and arguments; a class is written by its catalogue name
        or its dotted name. A factory is written by its dotted name too, but cannot be read back.
        """
        return {
            "epochs": self.epochs,
            "max_steps": self.max_steps,
            "batch_size": plain_value(self.batch_size),
            **_chosen("optimizer", OPTIMIZERS.name_of(self.optimizer), "optim_kwargs", self.optim_kwargs),
            **_chosen(
                "scheduler",
                None if self.scheduler is None else SCHEDULERS.name_of(self.scheduler),
                "scheduler_kwargs",
                self.scheduler_kwargs,
            ),
            "step_scheduler_per_epoch": self.step_scheduler_per_epoch,
        }

    def problems(self) -> list[str]:
        """Return the problems of `optim_kwargs` and `scheduler_kwargs`, one sentence each; empty if there are none.

        They are compared with the signatures of the optimizer and the scheduler: unknown arguments, missing ones that
        the trainer does not fill in, text instead of a number.
        """
        return [str(problem) for problem in self.problems_found()]

    def problems_found(self) -> list[Problem]:
        """Return the same problems, each with its place, such as `optim_kwargs.lr`."""
        return [
            *optimizers.optimizer_problems(self.optimizer, self.optim_kwargs),
            *schedulers.scheduler_problems(self.scheduler, self.scheduler_kwargs),
        ]

    def build_optimizer(self, named_parameters: Iterable[tuple[str, Parameter]]) -> torch.optim.Optimizer:
        """Build the optimizer for the parameters (as of `model.named_parameters()`) that require a gradient.

        `optim_kwargs["no_decay"]`, such as `["bias", "norm"]`, names parameters without weight decay: they form a
        second group with weight_decay 0. A parameter's name consists of components separated by dots
        (`encoder.LayerNorm.bias`). A word matches a parameter if one of the components contains it, ignoring case:
        "norm" matches `encoder.LayerNorm.weight` and `input_layernorm.weight`. A word with dots is compared part by
        part with consecutive components: "attn.bias" matches `layers.0.self_attn.bias`.

        Raises:
            ConfigError: If no parameter requires a gradient, a word of no_decay matches no parameter (frozen ones
                count), or the arguments are invalid.
        """
        return optimizers.build_optimizer(self.optimizer, self.optim_kwargs, named_parameters)

    def extend_optimizer(
        self,
        optimizer: torch.optim.Optimizer,
        named_parameters: Iterable[tuple[str, Parameter]],
        added: Iterable[Parameter],
    ) -> None:
        """Add parameters that are trained only from now on to an optimizer made by `build_optimizer`.

        Args:
            optimizer: The optimizer.
            named_parameters: All parameters of the model, by name.
            added: The parameters to add.

        Raises:
            ConfigError: If the optimizer cannot accept more parameters, such as LBFGS.
        """
        optimizers.extend_optimizer(optimizer, self.optimizer, self.optim_kwargs, named_parameters, added)

    def build_scheduler(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        steps_per_epoch: int | None,
        total_steps: int | None,
        epochs: int,
    ) -> LRScheduler | None:
        """Build the scheduler for a training of this length; None if no scheduler was chosen.

        Fills in num_training_steps, total_steps, T_max, steps_per_epoch and epochs if the scheduler has such an
        argument without a value, in optimizer steps, or in epochs with `step_scheduler_per_epoch`. `warmup_ratio` in
        `scheduler_kwargs` is the share of the training to warm up: num_warmup_steps is that share of the total, rounded
        up.

        Args:
            optimizer: The optimizer from `build_optimizer`.
            steps_per_epoch: Optimizer steps per epoch; None if unknown.
            total_steps: Optimizer steps in the training; None for `max_steps`, else the steps of all epochs.
            epochs: The number of epochs in the training.

        Raises:
            ConfigError: If a total is needed and unknown, or the arguments are invalid.
        """
        if self.scheduler is None:
            return None
        if self.step_scheduler_per_epoch:
            length = ScheduleLength.in_epochs(epochs)
        else:
            total = self.max_steps if total_steps is None else total_steps
            length = ScheduleLength.in_steps(total, steps_per_epoch, epochs)
        return schedulers.build_scheduler(self.scheduler, self.scheduler_kwargs, optimizer, length)

    def _meaning(self) -> list[Any]:
        return [
            *(self.epochs, self.max_steps, self.batch_size, self.step_scheduler_per_epoch),
            *(OPTIMIZERS.resolve(self.optimizer), comparable(self.optim_kwargs)),
            *(self.scheduler and SCHEDULERS.resolve(self.scheduler), comparable(self.scheduler_kwargs)),
        ]


def _chosen(key: str, name: str | None, kwargs_key: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Put a choice and its arguments in one mapping; in two if an argument is named `type` or nothing was chosen."""
    if name is None or "type" in kwargs:
        return {key: name, kwargs_key: plain_value(kwargs)} if kwargs else {key: name}
    return {key: {"type": name, **plain_value(kwargs)}}

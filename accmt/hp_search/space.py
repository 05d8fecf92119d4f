"""The space that a search looks through: what may be tried for each hyperparameter, and what a sample of it means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from accmt.hyperparameters import HyperParameters
from accmt.hyperparameters.arguments import arguments_of
from accmt.hyperparameters.schedulers import SCHEDULERS, SchedulerChoice

WARMUP = "warmup_ratio"


@dataclass(frozen=True, slots=True)
class Fixed:
    """The same value in every trial."""

    value: Any

    def __str__(self) -> str:
        return shown(self.value)


@dataclass(frozen=True, slots=True)
class Range:
    """Any value from `low` to `high`, both included: whole numbers if `whole`, on a logarithmic scale if `log`."""

    low: float
    high: float
    whole: bool = False
    log: bool = False

    def __str__(self) -> str:
        return f"{shown(self.low)} to {shown(self.high)}"


@dataclass(frozen=True, slots=True)
class Choices:
    """One of several values."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        return " | ".join(map(shown, self.values))


Parameter = Fixed | Range | Choices


@dataclass(frozen=True, slots=True)
class Space:
    """What may be tried.

    Attributes:
        parameters: Hyperparameter -> what may be tried, by the names of `set_parameters`. The values of `scheduler` are
            labels.
        schedulers: Label -> scheduler; None stands for a learning rate that stays.
        optimizer: The name of the optimizer.
        eval_batch_size: None for the batch size of the training.
        step_scheduler_per_epoch: Let the scheduler count epochs.
    """

    parameters: Mapping[str, Parameter]
    schedulers: Mapping[str, SchedulerChoice | None]
    optimizer: str
    eval_batch_size: int | None
    step_scheduler_per_epoch: bool

    @property
    def searched(self) -> dict[str, Range | Choices]:
        """What differs between trials; `warmup_ratio` only where a scheduler has a warm-up."""
        warm = any(map(warms_up, self.schedulers.values()))
        parameters = self.parameters.items()
        return {name: p for name, p in parameters if not isinstance(p, Fixed) and (warm or name != WARMUP)}

    def sample(self, suggest: Callable[[str, Parameter], Any]) -> dict[str, Any]:
        """The values of one trial. `suggest` is asked for every hyperparameter that this trial makes use of."""
        values = {name: suggest(name, parameter) for name, parameter in self.parameters.items() if name != WARMUP}
        if warms_up(self.schedulers[values["scheduler"]]):
            values[WARMUP] = suggest(WARMUP, self.parameters[WARMUP])
        return values

    def hyperparameters(self, values: Mapping[str, Any]) -> HyperParameters:
        """What a trial with these values trains with."""
        batch = values["train_batch_size"]
        return HyperParameters(
            epochs=values["epochs"],
            max_steps=values["max_steps"],
            batch_size=(batch, self.eval_batch_size or batch),
            optimizer=self.optimizer,
            optim_kwargs={
                "lr": values["learning_rate"],
                "betas": (values["beta1"], values["beta2"]),
                "eps": values["eps"],
                "weight_decay": values["weight_decay"],
            },
            scheduler=self.schedulers[values["scheduler"]],
            scheduler_kwargs={WARMUP: values[WARMUP]} if WARMUP in values else {},
            step_scheduler_per_epoch=self.step_scheduler_per_epoch,
        )


def warms_up(scheduler: SchedulerChoice | None) -> bool:
    """Whether the share to warm up can be given to a scheduler. A factory that has its warm-up already keeps it."""
    if scheduler is None:
        return False
    factory = SCHEDULERS.resolve(scheduler)
    names = {WARMUP, "num_warmup_steps"}
    if isinstance(factory, partial) and names & factory.keywords.keys():
        return False
    return any(map(arguments_of(factory).takes, names))


def shown(value: Any) -> str:
    """A value in a line or a table."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)

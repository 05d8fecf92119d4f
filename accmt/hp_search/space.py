"""Search space: the values to try for each hyperparameter, and the hyperparameters that a sample stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from accmt.hyperparameters import HyperParameters
from accmt.hyperparameters.arguments import signature_arguments
from accmt.hyperparameters.schedulers import SCHEDULERS, SchedulerChoice

WARMUP = "warmup_ratio"


@dataclass(frozen=True, slots=True)
class Fixed:
    """A parameter with the same value in every trial."""

    value: Any

    def __str__(self) -> str:
        return shown_value(self.value)


@dataclass(frozen=True, slots=True)
class Range:
    """A range from `low` to `high`, both included: whole numbers if `whole`, on a logarithmic scale if `log`."""

    low: float
    high: float
    whole: bool = False
    log: bool = False

    def __str__(self) -> str:
        return f"{shown_value(self.low)} to {shown_value(self.high)}"


@dataclass(frozen=True, slots=True)
class Choices:
    """A parameter with one of several values."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        return " | ".join(map(shown_value, self.values))


Parameter = Fixed | Range | Choices


@dataclass(frozen=True, slots=True)
class Space:
    """The search space.

    Attributes:
        parameters: Hyperparameter -> values to try, by the names of `set_parameters`. The values of `scheduler` are
            labels.
        schedulers: Label -> scheduler; None means a constant learning rate.
        optimizer: The name of the optimizer.
        eval_batch_size: The batch size of evaluations; None for that of the training.
        step_scheduler_per_epoch: Let the scheduler count epochs.
    """

    parameters: Mapping[str, Parameter]
    schedulers: Mapping[str, SchedulerChoice | None]
    optimizer: str
    eval_batch_size: int | None
    step_scheduler_per_epoch: bool

    @property
    def searched(self) -> dict[str, Range | Choices]:
        """Parameters that differ between trials; `warmup_ratio` only if a scheduler has a warm-up."""
        warm = any(map(warms_up, self.schedulers.values()))
        parameters = self.parameters.items()
        return {name: p for name, p in parameters if not isinstance(p, Fixed) and (warm or name != WARMUP)}

    def sample(self, suggest: Callable[[str, Parameter], Any]) -> dict[str, Any]:
        """Sample the values of one trial. `suggest` is called for every hyperparameter that this trial uses."""
        values = {name: suggest(name, parameter) for name, parameter in self.parameters.items() if name != WARMUP}
        if warms_up(self.schedulers[values["scheduler"]]):
            values[WARMUP] = suggest(WARMUP, self.parameters[WARMUP])
        return values

    def hyperparameters(self, values: Mapping[str, Any]) -> HyperParameters:
        """Return the hyperparameters of a trial with these values."""
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
    """Return whether a scheduler accepts a warm-up share. A factory that already sets its warm-up does not."""
    if scheduler is None:
        return False
    factory = SCHEDULERS.resolve(scheduler)
    names = {WARMUP, "num_warmup_steps"}
    if isinstance(factory, partial) and names & factory.keywords.keys():
        return False
    return any(map(signature_arguments(factory).takes, names))


def shown_value(value: Any) -> str:
    """Format a value for a line or a table."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)

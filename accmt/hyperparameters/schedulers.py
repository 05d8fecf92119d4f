"""Schedulers by name, and how to build one for the length of a training."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from accmt.config.errors import ConfigError, Problem, must_be, raise_problems
from accmt.hyperparameters import schedules
from accmt.hyperparameters.arguments import Given, SignatureArguments, argument_problems, signature_arguments
from accmt.hyperparameters.catalogue import Catalogue

SchedulerChoice = str | type[LRScheduler] | Callable[..., LRScheduler]
"""A name, a class, or a factory `(optimizer, **arguments) -> LRScheduler`."""


class Scheduler:
    """Schedulers with a name: `HyperParameters(scheduler=Scheduler.StepLR)` is the same as `scheduler="StepLR"`.

    Each attribute is a torch class or a function of `accmt.hyperparameters.schedules`, so an editor shows its
    arguments, which go into `scheduler_kwargs`. The trainer provides the optimizer, and num_training_steps, total_steps
    and T_max unless they are given. Schedules with num_warmup_steps also accept warmup_ratio instead. ReduceLROnPlateau
    steps after each evaluation, with the value that `scheduler_metric` of the trainer names.
    """

    Constant = staticmethod(schedules.constant)
    ConstantWithWarmup = staticmethod(schedules.constant_with_warmup)
    CosineAnnealingLR = lr_scheduler.CosineAnnealingLR
    CosineAnnealingWarmRestarts = lr_scheduler.CosineAnnealingWarmRestarts
    CosineWithHardRestartsWithWarmup = staticmethod(schedules.cosine_with_hard_restarts_with_warmup)
    CosineWithWarmup = staticmethod(schedules.cosine_with_warmup)
    CyclicLR = lr_scheduler.CyclicLR
    ExponentialLR = lr_scheduler.ExponentialLR
    InverseSQRT = staticmethod(schedules.inverse_sqrt)
    LinearLR = lr_scheduler.LinearLR
    LinearWithWarmup = staticmethod(schedules.linear_with_warmup)
    OneCycleLR = lr_scheduler.OneCycleLR
    PolynomialDecayWithWarmup = staticmethod(schedules.polynomial_decay_with_warmup)
    ReduceLROnPlateau = lr_scheduler.ReduceLROnPlateau
    StepLR = lr_scheduler.StepLR

    def __init__(self) -> None:
        raise TypeError("Scheduler is a list of names; use one of its attributes, such as Scheduler.LinearWithWarmup")


SCHEDULERS = Catalogue.of("scheduler", LRScheduler, "torch.optim.lr_scheduler.LRScheduler", "optimizer", Scheduler)

NEEDS_METRIC = '{} follows a metric: give scheduler_metric="valid_loss", or a rule such as "best_accuracy@dev"'

_TOTALS = ("num_training_steps", "total_steps", "T_max")
_LENGTHS = ("steps_per_epoch", "epochs")


@dataclass(frozen=True, slots=True)
class ScheduleLength:
    """Length of a training in the unit that the scheduler counts: optimizer steps, or epochs.

    `total` and `steps_per_epoch` are None if the training data have no known length.
    """

    total: int | None
    steps_per_epoch: int | None
    epochs: int

    @classmethod
    def in_steps(cls, total_steps: int | None, steps_per_epoch: int | None, epochs: int) -> ScheduleLength:
        """Return the length for a scheduler that steps with the optimizer."""
        if total_steps is None and steps_per_epoch is not None:
            total_steps = steps_per_epoch * epochs
        return cls(total_steps, steps_per_epoch, epochs)

    @classmethod
    def in_epochs(cls, epochs: int) -> ScheduleLength:
        """Return the length for a scheduler that steps once per epoch."""
        return cls(epochs, 1, epochs)

    def value_for(self, argument: str) -> int | None:
        """Return the value of an argument that the trainer fills in."""
        if argument in _TOTALS:
            return self.total
        return self.steps_per_epoch if argument == "steps_per_epoch" else self.epochs


def scheduler_problems(choice: SchedulerChoice | None, kwargs: Mapping[str, Any]) -> list[Problem]:
    """Check the arguments for the chosen scheduler."""
    if choice is None:
        return (
            [Problem("scheduler_kwargs", "given without a scheduler, remove them or set scheduler")] if kwargs else []
        )
    factory = SCHEDULERS.resolve(choice)
    arguments = signature_arguments(factory)
    given = Given(SCHEDULERS.title_of(choice), "scheduler_kwargs", kwargs)
    warms_up = arguments.takes("num_warmup_steps")
    by_ratio = _warms_by_ratio(arguments, kwargs)
    filled = [*_TOTALS, *_LENGTHS, *(["num_warmup_steps"] if by_ratio else [])]
    problems = argument_problems(given, arguments, extras=("warmup_ratio",) if warms_up else (), filled=filled)
    if by_ratio:
        problems = [problem for problem in problems if problem.path != "scheduler_kwargs.warmup_ratio"]
        problems += _warmup_problems(given, warms_up)
    problems += _half_given_length(given, arguments)
    return problems


def is_plateau(choice: SchedulerChoice | None) -> bool:
    """Return whether a choice is ReduceLROnPlateau or a subclass of it."""
    factory = None if choice is None else SCHEDULERS.resolve(choice)
    return isinstance(factory, type) and issubclass(factory, lr_scheduler.ReduceLROnPlateau)


def follows_metric(scheduler: Any) -> bool:
    """Return whether a scheduler steps with the value of a metric, as ReduceLROnPlateau does."""
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        return True
    return any("metric" in name for name in required_in_step(scheduler))


def required_in_step(scheduler: Any) -> list[str]:
    """Return the required arguments of a scheduler's `step`."""
    try:
        parameters = inspect.signature(scheduler.step).parameters.values()
    except (TypeError, ValueError):
        return []
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [one.name for one in parameters if one.default is one.empty and one.kind not in several]


def build_scheduler(
    choice: SchedulerChoice, kwargs: Mapping[str, Any], optimizer: torch.optim.Optimizer, length: ScheduleLength
) -> LRScheduler:
    """Build the scheduler; the training's length fills in arguments. See `HyperParameters.build_scheduler`."""
    problems = scheduler_problems(choice, kwargs)
    raise_problems(problems, "HyperParameters")
    arguments = signature_arguments(SCHEDULERS.resolve(choice))
    filled = _filled(SCHEDULERS.title_of(choice), arguments, kwargs, length)
    scheduler: LRScheduler = SCHEDULERS.build(choice, "scheduler_kwargs", optimizer, **filled)
    return scheduler


def _warms_by_ratio(arguments: SignatureArguments, kwargs: Mapping[str, Any]) -> bool:
    """Return whether accmt handles `warmup_ratio`; a factory that accepts an argument of this name gets it instead."""
    if "warmup_ratio" not in kwargs or arguments.takes("warmup_ratio"):
        return False
    return arguments.takes("num_warmup_steps") or not arguments.open


def _warmup_problems(given: Given, warms_up: bool) -> list[Problem]:
    if not warms_up:
        return [given.problem("warmup_ratio", f"{given.name} has no num_warmup_steps, remove it")]
    ratio = given.values["warmup_ratio"]
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio <= 1:
        return [given.problem("warmup_ratio", must_be("a number from 0 to 1", ratio))]
    if given.values.get("num_warmup_steps") is not None:
        return [given.problem("warmup_ratio", "given together with num_warmup_steps, keep one of them")]
    return []


def _half_given_length(given: Given, arguments: SignatureArguments) -> list[Problem]:
    """Report `epochs` or `steps_per_epoch` given alone (OneCycleLR): the training's total would override it."""
    if not all(map(arguments.takes, ("total_steps", *_LENGTHS))) or given.values.get("total_steps") is not None:
        return []
    present = [name for name in _LENGTHS if given.values.get(name) is not None]
    if len(present) != 1:
        return []
    other = next(name for name in _LENGTHS if name not in present)
    text = f"given without {other}. Give both, or total_steps, or none for the length of the training"
    return [given.problem(present[0], text)]


def _filled(
    name: str, arguments: SignatureArguments, kwargs: Mapping[str, Any], length: ScheduleLength
) -> dict[str, Any]:
    """Return the arguments, completed from the length of the training."""
    filled = dict(kwargs)
    for argument in _awaited(arguments, kwargs):
        filled[argument] = _known(name, argument, length)
    if _warms_by_ratio(arguments, kwargs):
        ratio = Fraction(str(float(filled.pop("warmup_ratio"))))
        totals = (filled[argument] for argument in _TOTALS if filled.get(argument) is not None)
        total = next(totals, None)
        filled["num_warmup_steps"] = math.ceil(
            ratio * (_known(name, "num_warmup_steps", length) if total is None else total)
        )
    return filled


def _awaited(arguments: SignatureArguments, kwargs: Mapping[str, Any]) -> list[str]:
    """Return the arguments that the training fills in: those without a value in the signature.

    If a signature has all three (OneCycleLR), a total makes epochs and steps_per_epoch unnecessary, and these two make
    a total unnecessary.
    """
    missing = [name for name in (*_TOTALS, *_LENGTHS) if arguments.awaits(name) and kwargs.get(name) is None]
    if arguments.takes("total_steps") and all(map(arguments.takes, _LENGTHS)):
        told = all(kwargs.get(name) is not None for name in _LENGTHS)
        optional = {"total_steps"} if told else set(_LENGTHS)
        return [name for name in missing if arguments.requires(name) or name not in optional]
    return missing


def _known(name: str, argument: str, length: ScheduleLength) -> int:
    """Return the length for an argument; for num_warmup_steps, the total of which it is a share."""
    value = length.total if argument == "num_warmup_steps" else length.value_for(argument)
    if value is None:
        text = (
            f"{name} needs the number of optimizer steps, which is unknown because the training data have no length. "
            "Give it in scheduler_kwargs, or set max_steps"
        )
        raise ConfigError([Problem(f"scheduler_kwargs.{argument}", text)])
    return value

"""Parser for the arguments of `set_parameters`: one value, a range, or choices. Reports every problem at once."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from accmt.config.errors import ConfigError, Problem, did_you_mean, must_be
from accmt.config.kinds import FLAG
from accmt.hp_search.space import WARMUP, Choices, Fixed, Parameter, Range, Space, warms_up
from accmt.hyperparameters.schedulers import SCHEDULERS, SchedulerChoice, scheduler_problems

OPTIMIZERS = {"AdamW": torch.optim.AdamW, "Adam": torch.optim.Adam}
"""Optimizers to which the arguments `beta1`, `beta2`, `eps` and `weight_decay` belong."""

NO_SCHEDULER = "none"
"""The label of a constant learning rate."""


@dataclass(frozen=True, slots=True)
class RangeLimits:
    """Valid values of a hyperparameter: their description, whether they are whole numbers, and a test."""

    wanted: str
    allows: Callable[[float], bool]
    whole: bool = False


_COUNT = RangeLimits("a whole number from 1", lambda value: value >= 1, whole=True)
_SHARE_BELOW_1 = RangeLimits("a number from 0 to below 1", lambda value: 0 <= value < 1)
_NOT_NEGATIVE = RangeLimits("a number from 0", lambda value: 0 <= value < float("inf"))
_NUMBERS = {
    "train_batch_size": _COUNT,
    "epochs": _COUNT,
    "max_steps": _COUNT,
    "learning_rate": RangeLimits("a positive number", lambda value: 0 < value < float("inf")),
    "beta1": _SHARE_BELOW_1,
    "beta2": _SHARE_BELOW_1,
    "eps": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    WARMUP: RangeLimits("a number from 0 to 1", lambda value: 0 <= value <= 1),
}
_LISTS_ARE_CHOICES = "train_batch_size"
_ON_LOG_SCALE = "learning_rate"


def read_space(given: Mapping[str, Any]) -> Space:
    """Return the search space that the arguments of `set_parameters` declare.

    Raises:
        ConfigError: With all problems.
    """
    return _Reader(given).space()


class _Reader:
    """Reads arguments by name and collects the problems in them."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = given
        self._problems: list[Problem] = []

    def space(self) -> Space:
        parameters = {name: self._number(name) for name in _NUMBERS}
        schedulers = self._schedulers()
        labels = tuple(schedulers)
        parameters["scheduler"] = Fixed(labels[0]) if len(labels) == 1 else Choices(labels)
        optimizer, size = self._optimizer(), self._eval_batch_size()
        per_epoch = self._given["step_scheduler_per_epoch"]
        self._problems += FLAG.problems("step_scheduler_per_epoch", per_epoch)
        if parameters["max_steps"] != Fixed(None) and not isinstance(parameters["epochs"], Fixed):
            self._wrong("epochs", "has no effect, because max_steps replaces it: leave one of them out")
        if self._problems:
            raise ConfigError(self._problems, "set_parameters(...)")
        return Space(parameters, schedulers, optimizer, size, per_epoch)

    def _wrong(self, name: str, text: str) -> None:
        self._problems.append(Problem(name, text))

    def _number(self, name: str) -> Parameter:
        given = self._given[name]
        if given is None and name == "max_steps":
            return Fixed(None)
        if isinstance(given, tuple) or (isinstance(given, list) and name == _LISTS_ARE_CHOICES):
            return self._choices(name, given)
        if isinstance(given, list):
            return self._range(name, given)
        how = "a list" if name == _LISTS_ARE_CHOICES else "a tuple"
        ranged = "" if name == _LISTS_ARE_CHOICES else ", a range [low, high]"
        return Fixed(self._value(name, name, given, f"{ranged} or {how} of choices"))

    def _choices(self, name: str, given: tuple[Any, ...] | list[Any]) -> Parameter:
        values = tuple(self._value(name, f"{name}[{index}]", value) for index, value in enumerate(given))
        if not values:
            self._wrong(name, "is empty: give the values to choose from")
        for value in dict.fromkeys(value for value in values if values.count(value) > 1):
            if value is not None:
                self._wrong(name, f"has the choice {value!r} more than once")
        return Choices(values)

    def _range(self, name: str, given: list[Any]) -> Parameter:
        if len(given) != 2:
            text = f"a list is a range and has two ends, [low, high], not {len(given)} values; a tuple is choices"
            self._wrong(name, text)
            return Fixed(None)
        ends = [self._value(name, f"{name}[{index}]", value) for index, value in enumerate(given)]
        if None in ends:
            return Fixed(None)
        return Range(min(ends), max(ends), _NUMBERS[name].whole, log=name == _ON_LOG_SCALE)

    def _value(self, name: str, place: str, value: Any, or_else: str = "") -> Any:
        """Return the number in Python's own type, or None if it is not valid."""
        limits = _NUMBERS[name]
        fits = isinstance(value, numbers.Integral if limits.whole else numbers.Real) and not isinstance(value, bool)
        if not fits or not limits.allows(value):
            self._wrong(place, must_be(limits.wanted + or_else, value))
            return None
        return int(value) if limits.whole else float(value)

    def _schedulers(self) -> dict[str, SchedulerChoice | None]:
        given = self._given["scheduler"]
        if given is None:
            return {NO_SCHEDULER: None}
        if not isinstance(given, Mapping):
            name = self._scheduler("scheduler", given)
            return {name: given}
        if not given:
            self._wrong("scheduler", "is empty: give the schedulers to choose from, {label: scheduler}")
            return {NO_SCHEDULER: None}
        for label, choice in given.items():
            if not isinstance(label, str):
                self._wrong("scheduler", f"has the label {label!r}: a label is a string")
            elif choice is not None:
                self._scheduler(f"scheduler['{label}']", choice)
        return dict(given)

    def _scheduler(self, place: str, choice: Any) -> str:
        """Check one scheduler and return its name."""
        try:
            SCHEDULERS.resolve(choice)
        except ValueError as error:
            options = "; several go into a dictionary, {label: scheduler}" if isinstance(choice, list | tuple) else ""
            self._wrong(place, f"{error}{options}")
            return NO_SCHEDULER
        title = SCHEDULERS.title_of(choice)
        problems = scheduler_problems(choice, {WARMUP: 0.0} if warms_up(choice) else {})
        missing = [problem.path.rpartition(".")[2] for problem in problems if "." in problem.path]
        if missing:
            names = ", ".join(missing)
            example = f"functools.partial(Scheduler.{title}, {missing[0]}=...)"
            self._wrong(place, f"{title} cannot be built without {names}: give it with them, as in {example}")
        for problem in problems:
            if "." not in problem.path:
                self._wrong(place, problem.text)
        return title

    def _optimizer(self) -> str:
        given = self._given["optimizer"]
        for name, kind in OPTIMIZERS.items():
            if given in (name, kind):
                return name
        names = " or ".join(map(repr, OPTIMIZERS))
        hint = did_you_mean(given, OPTIMIZERS) if isinstance(given, str) else "."
        self._wrong("optimizer", must_be(names, given) + hint.removesuffix("."))
        return next(iter(OPTIMIZERS))

    def _eval_batch_size(self) -> Any:
        name, or_else = "eval_batch_size", ", or None for the training batch size"
        return None if self._given[name] is None else self._value("train_batch_size", name, self._given[name], or_else)

"""Valid values of the fields of `HyperParameters`, and the errors for others."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from typing import Any

from accmt.config.errors import Problem, must_be, raise_problems
from accmt.config.kinds import FLAG
from accmt.hyperparameters.optimizers import OPTIMIZERS
from accmt.hyperparameters.schedulers import SCHEDULERS

_WHOLE = "a whole number of at least 1"
_ARGUMENTS = "a mapping of argument names to values"


def _count(value: Any, wanted: str = _WHOLE) -> int:
    """Return a whole number in Python's own type."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(must_be(wanted, value))
    return int(value)


def _batch_size(value: Any) -> int | tuple[int, int]:
    wanted = f"{_WHOLE}, or two of them (training, evaluation)"
    if not isinstance(value, tuple | list):
        return _count(value, wanted)
    try:
        train, evaluation = map(_count, value)
    except ValueError:
        raise ValueError(must_be(wanted, value)) from None
    return train, evaluation


def _arguments(value: Any) -> dict[str, Any]:
    given = {} if value is None else value
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise ValueError(must_be(_ARGUMENTS, value))
    return dict(given)


def _optimizer(value: Any) -> Any:
    OPTIMIZERS.resolve(value)
    return value


def _scheduler(value: Any) -> Any:
    if value is not None:
        SCHEDULERS.resolve(value)
    return value


def _flag(value: Any) -> bool:
    if not FLAG.fits(value):
        raise ValueError(must_be("true or false", value))
    return bool(value)


FIELDS: Mapping[str, Callable[[Any], Any]] = {
    "epochs": _count,
    "max_steps": lambda value: None if value is None else _count(value, f"{_WHOLE}, or None"),
    "batch_size": _batch_size,
    "optimizer": _optimizer,
    "optim_kwargs": _arguments,
    "scheduler": _scheduler,
    "scheduler_kwargs": _arguments,
    "step_scheduler_per_epoch": _flag,
}
"""Field -> a function that returns its value in the form in which it is kept, or raises a ValueError."""


def validated(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of these fields in the form in which they are kept.

    Raises:
        ConfigError: With a problem for each invalid value.
    """
    fields, problems = {}, []
    for name, value in given.items():
        try:
            fields[name] = FIELDS[name](value)
        except ValueError as error:
            problems.append(Problem(name, str(error)))
    raise_problems(problems, "HyperParameters")
    return fields

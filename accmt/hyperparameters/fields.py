"""Valid values of the fields of `HyperParameters`, checked by pydantic, with error texts of our own."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    Strict,
    ValidationError,
)

from accmt.config.errors import ConfigError, Problem, must_be, unknown_key
from accmt.hyperparameters.catalogue import Catalogue
from accmt.hyperparameters.optimizers import OPTIMIZERS
from accmt.hyperparameters.schedulers import SCHEDULERS

_WHOLE = "a whole number of at least 1"
_ARGUMENTS = "a mapping of argument names to values"
_WANTED = {
    "epochs": _WHOLE,
    "max_steps": f"{_WHOLE}, or None",
    "batch_size": f"{_WHOLE}, or two of them (training, evaluation)",
    "optim_kwargs": _ARGUMENTS,
    "scheduler_kwargs": _ARGUMENTS,
    "step_scheduler_per_epoch": "true or false",
}
# Names that other libraries use for these fields.
_OTHER_NAMES = {
    **dict.fromkeys(("epoch", "n_epochs", "num_epochs", "max_epochs", "num_train_epochs"), "epochs"),
    **dict.fromkeys(("steps", "n_steps", "num_steps", "total_steps", "num_train_steps"), "max_steps"),
    **dict.fromkeys(("bs", "train_batch_size", "per_device_train_batch_size", "eval_batch_size"), "batch_size"),
    **dict.fromkeys(("optim", "opt", "optimizer_type", "optimizer_name"), "optimizer"),
    **dict.fromkeys(("optimizer_kwargs", "optim_args", "optimizer_args", "optimizer_params"), "optim_kwargs"),
    **dict.fromkeys(("sched", "lr_scheduler", "lr_scheduler_type", "scheduler_type"), "scheduler"),
    **dict.fromkeys(("lr_scheduler_kwargs", "scheduler_args", "scheduler_params"), "scheduler_kwargs"),
}
_OF_OPTIMIZERS: Mapping[object, str] = {
    **{name: name for name in ("lr", "weight_decay", "momentum", "betas", "eps", "no_decay")},
    "learning_rate": "lr",
}


def _number(value: object) -> object:
    """Convert numpy's whole numbers to Python's; bools are left for the strict type to reject."""
    return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else value


def _one_of(catalogue: Catalogue) -> Callable[[object], object]:
    """Return a check that the catalogue can resolve the value, which is not changed."""

    def checked(value: object) -> object:
        catalogue.resolve(value)
        return value

    return checked


def _scheduler(value: object) -> object:
    return None if value is None else _one_of(SCHEDULERS)(value)


def _or_empty(value: object) -> object:
    return {} if value is None else value


Whole = Annotated[int, Strict(), Field(ge=1), BeforeValidator(_number)]
Pair = Annotated[tuple[Whole, Whole], Strict()]
PairAsList = Annotated[list[Whole], Strict(), Field(min_length=2, max_length=2), AfterValidator(tuple)]
KeywordArguments = Annotated[dict[str, Any], BeforeValidator(_or_empty)]


class Fields(BaseModel):
    """Fields of `HyperParameters`, with their defaults."""

    model_config = ConfigDict(extra="forbid")

    epochs: Whole = 1
    max_steps: Whole | None = None
    batch_size: Whole | Pair | PairAsList = 1
    optimizer: Annotated[Any, PlainValidator(_one_of(OPTIMIZERS))] = "SGD"
    optim_kwargs: KeywordArguments = {}
    scheduler: Annotated[Any, PlainValidator(_scheduler)] = None
    scheduler_kwargs: KeywordArguments = {}
    step_scheduler_per_epoch: Annotated[bool, Strict()] = False


def validated(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value of every field, including defaults. The keys of `given` must be fields.

    Raises:
        ConfigError: With a problem for each invalid value.
    """
    try:
        fields = Fields.model_validate(dict(given))
    except ValidationError as error:
        # A union reports each of its alternatives: one problem per field is enough.
        found = {str(detail["loc"][0]): detail.get("ctx", {}).get("error") for detail in error.errors()}
        raise ConfigError([Problem(name, _text(name, given, said)) for name, said in found.items()]) from None
    return {name: getattr(fields, name) for name in Fields.model_fields}


def unknown_field(key: object, allowed: Iterable[str]) -> str:
    """Return the error for an unknown field, suggesting the field that other libraries call by this name."""
    allowed = tuple(allowed)
    known = f"Allowed are {', '.join(allowed)}"
    if key in _OF_OPTIMIZERS:
        name = _OF_OPTIMIZERS[key]
        return f"unknown key, '{name}' is an argument of the optimizer: it belongs to optim_kwargs. {known}"
    meant = _OTHER_NAMES.get(str(key).casefold().replace("-", "_"))
    return unknown_key(key, allowed) if meant is None else f"unknown key, did you mean '{meant}'? {known}"


def _text(name: str, given: Mapping[str, Any], said: Exception | None) -> str:
    return must_be(_WANTED[name], given[name]) if said is None else str(said)

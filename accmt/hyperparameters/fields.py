"""Which values the fields of `HyperParameters` may have, checked by pydantic and worded here."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
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

from accmt.config.errors import ConfigError, Problem, must_be
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


def _number(value: object) -> object:
    """numpy's whole numbers as Python's; truth values are left for the strict type to refuse."""
    return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else value


def _one_of(catalogue: Catalogue) -> Callable[[object], object]:
    """A check that the catalogue can resolve the value, which stays as it was given."""

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
    """The fields, with the defaults of `HyperParameters`."""

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
    """The value of every field, defaults included. `given` has keys that are fields only.

    Raises:
        ConfigError: With a problem for each value that cannot be used.
    """
    try:
        fields = Fields.model_validate(dict(given))
    except ValidationError as error:
        # A union reports each of its alternatives: one problem per field is enough.
        found = {str(detail["loc"][0]): detail.get("ctx", {}).get("error") for detail in error.errors()}
        raise ConfigError([Problem(name, _text(name, given, said)) for name, said in found.items()]) from None
    return {name: getattr(fields, name) for name in Fields.model_fields}


def _text(name: str, given: Mapping[str, Any], said: Exception | None) -> str:
    return must_be(_WANTED[name], given[name]) if said is None else str(said)

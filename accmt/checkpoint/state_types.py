"""Types of the values in the JSON of a checkpoint, which someone else may have written.

Each part declares its own, as a subclass of `Written`. Optional keys are those that checkpoints of earlier
versions lack.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from accmt.rules.codec import count_from, from_text


def _number(value: Any) -> float:
    if type(value) not in (int, float, str):
        raise ValueError("not a number")
    return from_text(value)


def _interval(value: list[Any]) -> list[Any]:
    total, count = value
    return [_number(total), count_from(count)]


Count: TypeAlias = Annotated[int, Field(ge=0)]
Number: TypeAlias = Annotated[Any, AfterValidator(_number)]
Interval: TypeAlias = Annotated[list[Any], AfterValidator(_interval)]


class Written(BaseModel):
    """Mapping with these keys, each of its type."""

    model_config = ConfigDict(strict=True)


def check_written(kind: Any, data: Any, place: str = "") -> None:
    """Check that a piece of JSON, found at `place` in its file, is of a given type.

    Raises:
        ValueError: It is not; the message says where.
    """
    try:
        TypeAdapter(kind).validate_python(data, strict=True)
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, (*filter(None, (place,)), *wrong["loc"]))) or "it"
        is_there = wrong["type"] != "missing"
        raise ValueError(f"{where} is {wrong['input']!r:.100}" if is_there else f"{where} is missing") from None

"""Codec between frozen dataclasses and strict JSON, by the types of their fields.

NaN and the infinities are written as the strings "nan", "inf" and "-inf". Reading checks every value: JSON may have
been written by somebody else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Self, Union, get_args, get_origin, get_type_hints

_TEXTS = ("nan", "inf", "-inf")

Count = Annotated[int, "count"]
"""A non-negative integer."""

INLINE = {"codec": "inline"}
"""Metadata of a field whose own fields are written in its place."""

SPARSE = {"codec": "sparse"}
"""Metadata of a field that is written only if it differs from its default."""


class Jsonable:
    """Base of dataclasses that convert to JSON and back. They are equal if their JSON is, so that NaN equals NaN."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for field in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            value = getattr(self, field.name)
            if field.metadata == INLINE:
                data |= to_plain(value)
            elif field.metadata != SPARSE or value != _default(field):
                data[field.name] = to_plain(value)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the value that `to_json` wrote.

        Raises:
            ValueError: A field has a value of another type.
            KeyError: A field that is not sparse is missing.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"{data!r:.100} is not an object")
        values = {}
        for field, kind in _fields_of(cls):  # type: ignore[arg-type]
            if field.metadata == INLINE:
                values[field.name] = kind.from_json(data)
            elif field.metadata != SPARSE or field.name in data:
                try:
                    values[field.name] = from_plain(kind, data[field.name])
                except ValueError as error:
                    raise ValueError(f"{field.name}: {error}") from None
        return cls(**values)

    def __eq__(self, other: object) -> bool:
        return self.to_json() == other.to_json() if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(repr(self.to_json()))


def to_plain(value: Any) -> Any:
    """Return a value as JSON: a number, text, None, or a list or dictionary of such values."""
    if isinstance(value, Jsonable):
        return value.to_json()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {name: to_plain(entry) for name, entry in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(entry) for entry in value]
    return to_text(value) if isinstance(value, float) else value


def from_plain(kind: Any, value: Any) -> Any:
    """Return the value of a type that `to_plain` wrote.

    Raises:
        ValueError: It is not of that type.
        KeyError: A field of a dataclass is missing.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind == Count:
        return count_from(value)
    if origin in (Union, UnionType):
        [inner] = [argument for argument in arguments if argument is not NoneType]
        return None if value is None else from_plain(inner, value)
    if origin is tuple:
        return tuple(from_plain(arguments[0], entry) for entry in _of(list, value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {name: from_plain(arguments[1], entry) for name, entry in _of(dict, value).items()}
    if is_dataclass(kind):
        return kind.from_json(value)  # type: ignore[union-attr]  # only `Jsonable` ones are written
    if issubclass(kind, Enum):
        return kind(value)
    return from_text(value) if kind is float else _of(kind, value)


def to_text(value: float) -> float | str:
    """Return the number itself, or a string where JSON has no number for it."""
    number = float(value)
    return number if math.isfinite(number) else str(number)


def from_text(value: float | str) -> float:
    """Return the number that `to_text` wrote.

    Raises:
        ValueError: It is neither a number nor one of these strings, or too large for a float.
    """
    if type(value) not in (int, float) and value not in _TEXTS:
        raise ValueError(f"{value!r:.100} is not a number; the texts for numbers are {', '.join(_TEXTS)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{value!r:.20}... is too large") from None


def count_from(value: Any) -> int:
    """Return the value if it is a non-negative integer.

    Raises:
        ValueError: It is not.
    """
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.100} is not a count")
    return value


def _of(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{value!r:.100} is not of type {kind.__name__}")
    return value


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


@cache
def _fields_of(cls: type) -> tuple[tuple[Field[Any], Any], ...]:
    """Return each field and its type."""
    hints = get_type_hints(cls, include_extras=True)
    return tuple((field, hints[field.name]) for field in fields(cls))

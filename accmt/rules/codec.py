"""Codec between frozen dataclasses and strict JSON, by the types of their fields.

NaN and the infinities are written as the strings "nan", "inf" and "-inf". Reading checks every value: JSON may have
been written by somebody else. An error says the place, what is there, and what is allowed. Unknown keys are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin, get_type_hints

_TEXTS = ("nan", "inf", "-inf")

Count = Annotated[int, "count"]
"""A non-negative integer."""

Finite = Annotated[float, "finite"]
"""A number that is neither NaN nor infinite."""

INLINE = {"codec": "inline"}
"""Metadata of a field whose own fields are written in its place."""

SPARSE = {"codec": "sparse"}
"""Metadata of a field that is written only if it differs from its default."""

APART = {"codec": "apart"}
"""Metadata of a field that is recorded elsewhere: never written, and read as its default."""


class _Placed(ValueError):
    """Error whose message begins with the place of the value."""


class Jsonable:
    """Base of dataclasses that convert to JSON and back. They are equal if their JSON is, so that NaN equals NaN."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        return _written(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the value that `to_json` wrote.

        Raises:
            ValueError: A field is missing, unless it is sparse, or has a value of another type.
        """
        value: Self = _read(cls, data)
        return value

    def __eq__(self, other: object) -> bool:
        return self.to_json() == other.to_json() if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(repr(self.to_json()))


def to_plain(value: Any) -> Any:
    """Return a value as JSON: a number, text, None, or a list or dictionary of such values."""
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value):
        return _written(value)
    if isinstance(value, Mapping):
        return {name: to_plain(entry) for name, entry in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(entry) for entry in value]
    return to_text(value) if isinstance(value, float) else value


def from_plain(kind: Any, value: Any) -> Any:
    """Return the value of a type that `to_plain` wrote.

    Args:
        kind: A dataclass, an enum, `Count`, `Finite`, `Any`, `bool`, `int`, `float`, `str`, or a list, tuple, mapping,
            union or `Literal` of these.
        value: The JSON.

    Raises:
        ValueError: It is not of that type.
    """
    if kind is float:  # first, as most values of a journal are
        return value if type(value) is float else from_text(value)
    if kind is Any:
        return value
    if kind is Count:
        return count_from(value)
    if kind is Finite:
        return _finite_from(value)
    if is_dataclass(kind):
        return _read(kind, value)
    if get_origin(kind) is not None:
        return _from_generic(get_origin(kind), get_args(kind), value)
    if issubclass(kind, Enum):
        return kind(value)
    return _of(kind, value)


def from_plain_at(place: str, kind: Any, value: Any) -> Any:
    """Return what `from_plain` does; its errors begin with the place of the value."""
    try:
        return from_plain(kind, value)
    except _Placed as error:
        raise _Placed(f"{place}.{error}") from None
    except ValueError as error:
        raise _Placed(f"{place}: {error}") from None


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


def _finite_from(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{value!r:.100} is not a finite number")
    return float(value)


def _from_generic(origin: Any, arguments: tuple[Any, ...], value: Any) -> Any:
    if origin is Literal:
        if not any(type(value) is type(allowed) and value == allowed for allowed in arguments):
            raise ValueError(f"{value!r:.100} is not {' or '.join(map(repr, arguments))}")
        return value
    if origin in (Union, UnionType):
        return _from_any(arguments, value)
    if issubclass(origin, Mapping):
        return {name: from_plain_at(name, arguments[1], entry) for name, entry in _of(dict, value).items()}
    entries = _of(list, value)
    if origin is tuple and arguments[-1] is not Ellipsis and len(entries) != len(arguments):
        raise ValueError(f"{value!r:.100} is not a list of {len(arguments)} values")
    kinds = arguments if origin is tuple and arguments[-1] is not Ellipsis else (arguments[0],) * len(entries)
    return origin(from_plain_at(str(i), *pair) for i, pair in enumerate(zip(kinds, entries, strict=True)))


def _from_any(kinds: tuple[Any, ...], value: Any) -> Any:
    """Read a value of one of several types."""
    if value is None and NoneType in kinds:
        return None
    others = [kind for kind in kinds if kind is not NoneType]
    if len(others) == 1:
        return from_plain(others[0], value)
    for kind in others:
        with suppress(ValueError):
            return from_plain(kind, value)
    raise ValueError(f"{value!r:.100} is not of type {' or '.join(kind.__name__ for kind in others)}")


def _written(value: Any) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for field in fields(value):
        entry = getattr(value, field.name)
        if field.metadata == INLINE:
            data |= to_plain(entry)
        elif field.metadata != APART and (field.metadata != SPARSE or entry != _default(field)):
            data[field.name] = to_plain(entry)
    return data


def _read(cls: Any, data: Any) -> Any:
    if not isinstance(data, Mapping):
        raise ValueError(f"{data!r:.100} is not an object")
    values = {}
    for field, kind in _fields_of(cls):
        if field.metadata == INLINE:
            values[field.name] = _read(kind, data)
        elif field.metadata == APART:
            continue
        elif field.name in data:
            values[field.name] = from_plain_at(field.name, kind, data[field.name])
        elif field.metadata != SPARSE:
            raise _Placed(f"{field.name} is missing")
    return cls(**values)


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

"""Numbers in strict JSON: NaN and the infinities are written as the strings "nan", "inf" and "-inf"."""

from __future__ import annotations

import math
from typing import Any

_TEXTS = ("nan", "inf", "-inf")


class EqualAsJson:
    """Base for values that are equal if their JSON is equal, so that NaN equals NaN."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return self.to_json() == other.to_json() if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(repr(self.to_json()))


def to_text(value: float) -> float | str:
    """Return the number itself, or a string where JSON has no number for it."""
    number = float(value)
    return number if math.isfinite(number) else str(number)


def count_from(value: Any) -> int:
    """Return the value if it is a non-negative integer.

    Raises:
        ValueError: It is not.
    """
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.100} is no count")
    return value


def from_text(value: float | str) -> float:
    """Return the number that `to_text` wrote.

    Raises:
        ValueError: The string is not one of these, or the integer is too large for a float.
    """
    if isinstance(value, str) and value not in _TEXTS:
        raise ValueError(f"{value!r} is not a number; the texts for numbers are {', '.join(_TEXTS)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{value!r:.20}... is too large") from None

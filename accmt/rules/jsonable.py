"""Numbers in strict JSON: NaN and the infinities are written as the texts "nan", "inf" and "-inf"."""

from __future__ import annotations

import math
from typing import Any

_TEXTS = ("nan", "inf", "-inf")


class EqualAsJson:
    """Values that are equal when their JSON is, so that NaN equals NaN."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return self.to_json() == other.to_json() if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(repr(self.to_json()))


def to_text(value: float) -> float | str:
    """The number itself, or its text where JSON has no number for it."""
    number = float(value)
    return number if math.isfinite(number) else str(number)


def count_from(value: Any) -> int:
    """A whole number from 0 on.

    Raises:
        ValueError: Something else.
    """
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.100} is no count")
    return value


def from_text(value: float | str) -> float:
    """The number that `to_text` wrote.

    Raises:
        ValueError: A text that stands for no number, or a whole number that is too large.
    """
    if isinstance(value, str) and value not in _TEXTS:
        raise ValueError(f"{value!r} is not a number; the texts for numbers are {', '.join(_TEXTS)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{value!r:.20}... is too large") from None

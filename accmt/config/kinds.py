"""Kinds of values that an argument may have: each is described and tested in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from accmt.config.errors import Problem, must_be


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of values: its description in errors, and a test."""

    wanted: str
    fits: Callable[[Any], bool]

    def problems(self, name: str, value: Any) -> list[Problem]:
        """Return a problem if the value of an argument is of another kind."""
        return [] if self.fits(value) else [Problem(name, must_be(self.wanted, value))]

    def or_none(self) -> Kind:
        """Return this kind, with None in addition."""
        return Kind(f"{self.wanted}, or None", lambda value: value is None or self.fits(value))


def is_whole(value: Any, least: float = float("-inf")) -> bool:
    """Return whether a value is an integer from `least`; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: Any) -> bool:
    """Return whether a value is an integer or a float."""
    return is_whole(value) or isinstance(value, float)


FLAG = Kind("True or False", lambda value: isinstance(value, bool))
WHOLE = Kind("a whole number", is_whole)
COUNT = Kind("a whole number from 1", lambda value: is_whole(value, 1))
SHARE = Kind("a number from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1)
TEXT = Kind("a string", lambda value: isinstance(value, str) and value != "")
MAPPING = Kind("a dictionary", lambda value: isinstance(value, Mapping))
FUNCTION = Kind("a function", callable)

"""Checks of a collator's arguments."""

from __future__ import annotations

from typing import Any

from accmt.config.errors import ConfigError, Problem, must_be


def whole_problems(name: str, value: Any) -> list[Problem]:
    """Return a problem if the argument is not an integer."""
    if isinstance(value, int) and not isinstance(value, bool):
        return []
    return [Problem(name, must_be("a whole number", value))]


def flag_problems(name: str, value: Any) -> list[Problem]:
    """Return a problem if the argument is not True or False."""
    return [] if isinstance(value, bool) else [Problem(name, must_be("True or False", value))]


def share_problems(name: str, value: Any) -> list[Problem]:
    """Return a problem if the argument is not a number from 0 to 1."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return []
    return [Problem(name, must_be("a number from 0 to 1", value))]


def raise_problems(collator: object, problems: list[Problem]) -> None:
    """Raise a ConfigError with the problems of a collator's arguments, if there are any."""
    if problems:
        raise ConfigError(problems, f"{type(collator).__name__}(...)")

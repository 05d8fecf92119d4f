"""Mistakes in hyperparameters or a configuration file, and their messages."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar, cast

from accmt.config.other_names import MEANT
from accmt.earlier import former
from accmt.rules.errors import nearest
from accmt.rules.printable import shown
from accmt.tracebacks import concise

_Function = TypeVar("_Function", bound=Callable[..., Any])
_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = _shortened.maxlong = 60


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: `path` is the place of the value (`hps.optimizer.type`), `text` the error and its fix."""

    path: str
    text: str

    def __str__(self) -> str:
        text = shown(self.text, lines=True)
        return f"{shown(self.path)}: {text}" if self.path else text


class ConfigError(ValueError):
    """Arguments, hyperparameters or a configuration cannot be used.

    Attributes:
        problems: Every mistake that was found: its `path`, such as "hps.optimizer.type", and its `text`.
        source: What was read: a file, "the configuration" for a dictionary, or a call, such as "Trainer(...)".
    """

    def __init__(self, problems: Iterable[Problem], source: str = "HyperParameters") -> None:
        self.problems = tuple(problems)
        self.source = source
        count = "1 mistake" if len(self.problems) == 1 else f"{len(self.problems)} mistakes"
        super().__init__("\n".join([f"{count} in {source}:", *(f"  {problem}" for problem in self.problems)]))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[Problem, ...], str]]:
        return type(self), (self.problems, self.source)


def raise_problems(problems: Iterable[Problem], source: str) -> None:
    """Raise a ConfigError with these problems, if there are any."""
    if problems := tuple(problems):
        raise ConfigError(problems, source)


def must_be(wanted: str, value: object) -> str:
    """Return the message for a value of the wrong kind: "must be a whole number, not 'ten' (str)"."""
    if value is None:
        return f"must be {wanted}, not None"
    return f"must be {wanted}, not {_shortened.repr(value)} ({type(value).__name__})"


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return ", did you mean 'lr'?" if one of the names is near, else "." to end the sentence."""
    meant = nearest(name, names)
    return f", did you mean '{meant}'?" if meant is not None else "."


def argument_meant(name: str, names: Iterable[str]) -> str:
    """Return the same for an argument, which may have another name here, or belong elsewhere."""
    if (known := _known(name)) is None:
        return did_you_mean(name, names)
    meant, place = known
    names = tuple(names)
    here = next((name for name in (meant, *names) if name in names and MEANT.get(name, ("",))[0] == meant), None)
    return f", did you mean '{here}'?" if here is not None else f", did you mean '{meant}'{place}?"


def _known(name: str) -> tuple[str, str] | None:
    """Return the argument that other libraries call so, and where it belongs."""
    return MEANT.get(name.casefold().replace("-", "_"))


def unknown_key(key: object, allowed: Iterable[str], noun: str = "key") -> str:
    """Return the message for a key that a mapping may not have."""
    allowed = tuple(allowed)
    return f"unknown {noun}{argument_meant(str(key), allowed)} Allowed are {', '.join(allowed)}"


def names_missing(function: _Function) -> _Function:
    """Make a constructor `concise`, and refuse missing arguments, saying which have the name of another library."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    required = [one.name for one in parameters if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]

    @concise
    @wraps(function)
    def checked(self: object, *arguments: Any, **keywords: Any) -> Any:
        if missing := [name for name in required[len(arguments) :] if name not in keywords]:
            given = {known[0]: name for name in keywords if (known := _known(name)) is not None}
            words = [f"'{name}'{f' (given as {given[name]!r})' if name in given else ''}" for name in missing]
            hints = [f"; {name} {hint}" for name in keywords if (hint := former(name)) is not None]
            raise TypeError("".join([f"{type(self).__name__} is missing {' and '.join(words)}", *hints]))
        return function(self, *arguments, **keywords)

    return cast(_Function, checked)


def suggests(source: str, noun: str = "argument") -> Callable[[_Function], _Function]:
    """Make a method `concise`, and refuse an unknown keyword argument with a ConfigError that suggests the right one.

    Args:
        source: The source that the error names.
        noun: What the error calls an argument.
    """

    def decorated(function: _Function) -> _Function:
        names = list(inspect.signature(function).parameters)[1:]

        @concise
        @wraps(function)
        def checked(*arguments: Any, **keywords: Any) -> Any:
            unknown = (name for name in keywords if name not in names)
            raise_problems((Problem(name, unknown_key(name, names, noun)) for name in unknown), source)
            return function(*arguments, **keywords)

        return cast(_Function, checked)

    return decorated

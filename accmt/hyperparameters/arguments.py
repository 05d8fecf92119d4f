"""Arguments of an optimizer, a scheduler or a factory, read from the signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from accmt.config.errors import Problem, argument_meant, must_be

_REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True, slots=True)
class SignatureArguments:
    """Parameters of a factory after its first one (the parameters, or the optimizer), which the trainer provides.

    `defaults` maps each name to its default, or to `inspect.Parameter.empty` if it is required. `subject` is the name
    of the first argument, None if nothing can be given by position. An `open` factory accepts any other name as well.
    """

    defaults: Mapping[str, Any]
    subject: str | None
    open: bool

    def takes(self, name: str) -> bool:
        """Return whether the signature has an argument with this name."""
        return name in self.defaults

    def requires(self, name: str) -> bool:
        """Return whether the argument is required."""
        return self.takes(name) and self.defaults[name] is _REQUIRED

    def awaits(self, name: str) -> bool:
        """Return whether the signature gives the argument no value: it is required, or its default is None."""
        return self.requires(name) or (self.takes(name) and self.defaults[name] is None)


def signature_arguments(factory: Callable[..., object]) -> SignatureArguments:
    """Read the signature; a factory without one (some are written in C) accepts any argument."""
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):
        return SignatureArguments({}, subject="", open=True)
    subject = None
    if parameters and parameters[0].kind in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    ):
        subject = parameters.pop(0).name
    named = {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    }
    return SignatureArguments(
        named, subject, open=any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    )


@dataclass(frozen=True, slots=True)
class Given:
    """Arguments that a user gave to a factory, and the names of both for error messages."""

    name: str
    """The factory's name, such as "AdamW"."""
    path: str
    """Place where the arguments were given: "optim_kwargs" or "scheduler_kwargs"."""
    values: Mapping[str, Any]

    def problem(self, argument: str, text: str) -> Problem:
        return Problem(f"{self.path}.{argument}", text)


def argument_problems(
    given: Given, arguments: SignatureArguments, *, extras: Iterable[str] = (), filled: Iterable[str] = ()
) -> list[Problem]:
    """Check the arguments that were given.

    `extras` are names that accmt accepts besides those of the signature, and checks elsewhere; `filled` are arguments
    that the trainer provides if the user does not.
    """
    allowed = [*arguments.defaults, *extras]
    if arguments.subject is None:
        return [Problem(given.path, f"{given.name} must take {_subject(given)} as its first argument, by position")]
    problems = []
    for argument, value in given.values.items():
        if argument in {arguments.subject, _subject(given)} and argument not in allowed:
            problems.append(given.problem(argument, "the trainer gives it, remove it"))
        elif arguments.takes(argument):
            problems += _mistyped(given, argument, arguments.defaults[argument], value)
        elif argument not in allowed and not arguments.open:
            known = f"It takes {', '.join(allowed)}" if allowed else "It takes none"
            text = f"{given.name} has no such argument{argument_meant(argument, allowed)} {known}"
            problems.append(given.problem(argument, text))
    for argument in arguments.defaults:
        if arguments.requires(argument) and argument not in {*given.values, *filled}:
            alternative = " or warmup_ratio" if argument == "num_warmup_steps" else ""
            text = f"missing, {given.name} cannot be built without it. Give it{alternative} in {given.path}"
            problems.append(given.problem(argument, text))
    return problems


def _subject(given: Given) -> str:
    return "params" if given.path == "optim_kwargs" else "optimizer"


def _mistyped(given: Given, argument: str, default: object, value: object) -> list[Problem]:
    """Report a string or bool instead of a number, or a string instead of a bool: `lr: "1e-3"`, `nesterov: yes`."""
    if isinstance(default, bool):
        wanted = "true or false" if isinstance(value, str) else None
    elif isinstance(default, int | float):
        wanted = "a number" if isinstance(value, str | bool) else None
    elif isinstance(default, tuple | list):
        wanted = "numbers" if isinstance(value, tuple | list) and any(isinstance(x, str) for x in value) else None
    else:  # required or None: the expected type is unknown
        is_open = default is None or default is _REQUIRED
        wanted = "a number" if is_open and isinstance(value, str) and _is_number(value) else None
    return [] if wanted is None else [given.problem(argument, must_be(wanted, value))]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

"""Settings as a checkpoint records them: plain values that are equal if and only if the settings mean the same, and the
description of their changes.

Long values are recorded as a digest, and secrets in URLs are left out.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from accmt.files.secret_values import is_secret
from accmt.hyperparameters.catalogue import qualified_name
from accmt.hyperparameters.plain import comparable, plain_value

_LONGEST_LIST, _LONGEST_TEXT, _LONGEST_SAID = 32, 300, 60
_ARGUMENTS_OF = {"optim_kwargs": "optimizer", "scheduler_kwargs": "scheduler"}
_LOGIN = re.compile(r"://[^/@\s]+@")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def recorded(value: object) -> Any:
    """Convert a value to JSON; an object without its own string form becomes its class, and its name if it has one."""
    value = comparable(value)
    if isinstance(value, Mapping):
        return {str(key): "***" if is_secret(str(key)) else recorded(item) for key, item in value.items()}
    if isinstance(value, list):
        items = [recorded(item) for item in value]
        return items if len(items) <= _LONGEST_LIST else f"{len(items)} values ({digest(items)})"
    if isinstance(value, str):
        value = _LOGIN.sub("://***@", value)
        return value if len(value) <= _LONGEST_TEXT else f"{value[:_LONGEST_TEXT]}... ({digest(value)})"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON does not have this number
    if value is None or isinstance(value, int | float) or callable(value):
        return plain_value(value)
    text = repr(value)
    if not _ADDRESS.search(text):
        return recorded(text)
    name = getattr(value, "name", None)
    return f"{qualified_name(value)} '{name}'" if isinstance(name, str) else qualified_name(value)


def described(function: object, depth: int = 4) -> Any:
    """Describe a function by its name and constants, and by those of functions in its closure and arguments: what
    it computes, as far as that is visible without calling it."""
    if isinstance(function, partial):
        arguments = [described(item, depth - 1) for item in (*function.args, *function.keywords.values())]
        return [described(function.func, depth - 1), list(function.keywords), *arguments]
    if isinstance(function, MethodType):
        return [described(function.__func__, depth - 1), recorded(getattr(function.__self__, "__dict__", {}))]
    if not isinstance(function, FunctionType) or depth == 0:
        return recorded(function)
    constants = [recorded(item) for item in function.__code__.co_consts if isinstance(item, int | float | str)]
    cells = [described(cell.cell_contents, depth - 1) for cell in function.__closure__ or ()]
    defaults = [described(item, depth - 1) for item in function.__defaults__ or ()]
    return [qualified_name(function), *constants, *cells, *defaults]


def digest(value: object) -> str:
    """Return a short hash of a value."""
    return hashlib.blake2b(repr(value).encode(errors="surrogatepass"), digest_size=8).hexdigest()


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe the differences between two records, one line each: `lr was 0.003 and is 0.1`.

    A setting missing from one of them is left out, except arguments of the same optimizer or scheduler.

    Args:
        then, now: Setting -> value, flat, with the arguments of a factory as `optim_kwargs.lr`.
    """
    lines = []
    for name in dict.fromkeys([*now, *then]):
        group, _, argument = name.rpartition(".")
        chosen = _ARGUMENTS_OF.get(group)
        if chosen is not None and then.get(chosen) != now.get(chosen):
            continue  # another class has other arguments, and its change is reported
        absent = "not given" if group else None
        if absent is None and (name not in then or name not in now):
            continue
        before, after = then.get(name, absent), now.get(name, absent)
        if before != after:
            ambiguous = any(f"{other}.{argument}" in now for other in _ARGUMENTS_OF if other != group)
            lines.append(said(argument if chosen and not ambiguous else name, before, after))
    return lines


def said(name: str, then: Any, now: Any) -> str:
    """Describe a change."""
    return f"{name} was {_text(then)} and is {_text(now)}"


def _text(value: Any) -> str:
    text = value if isinstance(value, str) and value else repr(value)
    return text if len(text) <= _LONGEST_SAID else f"{text[:_LONGEST_SAID]}..."

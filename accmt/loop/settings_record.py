"""Settings of a training as a checkpoint records them, and descriptions of their changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LONGEST = 60
_ARGUMENTS_OF = {"optim_kwargs": "optimizer", "scheduler_kwargs": "scheduler"}


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
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."

"""Resolves paths from users once, when they are given: the current folder may change later."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

# The path of an SQLite file is relative after three slashes, absolute after four.
_SQLITE = re.compile(r"(?P<scheme>sqlite(?:\+\w+)?):///(?P<file>(?!/|file:|:memory:)[^?]+)(?P<rest>.*)", re.DOTALL)


def resolved(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path: `~` is the user's home, relative paths start at the current folder. Links stay.

    Raises:
        ValueError: There is no such user, the current folder no longer exists, or the path contains an invalid
            character; the message describes the argument.
    """
    expanded = os.path.expanduser(path)
    if not _can_be_named(expanded):
        raise ValueError(f"'{expanded}' contains a character that paths cannot have: remove it")
    if expanded.startswith("~"):
        name = expanded.partition("/")[0]
        raise ValueError(f"'{expanded}': there is no user {name[1:]}; a folder of this name is './{expanded}'")
    try:
        return Path(expanded).absolute()
    except FileNotFoundError:
        raise ValueError(f"'{path}' is relative, and the current folder is gone: give an absolute path") from None


_STARTED: Path | None = None  # where the user's shell still is, even if the script has changed its folder
with suppress(FileNotFoundError):
    _STARTED = Path.cwd()


def shortened(path: Path) -> Path:
    """Return the path for display: relative if it is below the folder in which the process was started."""
    return path.relative_to(_STARTED) if _STARTED is not None and path.is_relative_to(_STARTED) else path


def resolved_address(address: str) -> str:
    """Make the file in the URL of an SQLite database absolute; return all other URLs unchanged.

    Raises:
        ValueError: As in `resolved`.
    """
    match = _SQLITE.fullmatch(address)
    return address if match is None else f"{match['scheme']}:///{resolved(match['file'])}{match['rest']}"


def _can_be_named(path: str) -> bool:
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:  # a lone surrogate
        return False

"""Paths as users give them, resolved once, where they are given: the current folder may be another one later."""

from __future__ import annotations

import os
import re
from pathlib import Path

# A file of SQLite after three slashes is relative, after four absolute.
_SQLITE = re.compile(r"(?P<scheme>sqlite(?:\+\w+)?):///(?P<file>(?!/|file:|:memory:)[^?]+)(?P<rest>.*)", re.DOTALL)


def resolved(path: str | os.PathLike[str]) -> Path:
    """The absolute path: `~` is the home of the user, and what is relative begins at the current folder. Links stay.

    Raises:
        ValueError: There is no such user, or the current folder is gone, or no path can have this name; the message is
            for the argument.
    """
    expanded = os.path.expanduser(path)
    if not _can_be_named(expanded):
        raise ValueError(f"'{expanded}' holds a character that no path can have: leave it out")
    if expanded.startswith("~"):
        name = expanded.partition("/")[0]
        raise ValueError(f"'{expanded}': there is no user {name[1:]}; a folder of this name is './{expanded}'")
    try:
        return Path(expanded).absolute()
    except FileNotFoundError:
        raise ValueError(f"'{path}' is relative, and the current folder is gone: give an absolute path") from None


def shortened(path: Path) -> Path:
    """A path as short as it can be shown: relative where it lies below the folder that is current now."""
    try:
        return path.relative_to(Path.cwd())
    except (ValueError, OSError):
        return path


def resolved_address(address: str) -> str:
    """The address of a database with its file absolute, if it is one of SQLite; all others as they are.

    Raises:
        ValueError: As `resolved`.
    """
    match = _SQLITE.fullmatch(address)
    return address if match is None else f"{match['scheme']}:///{resolved(match['file'])}{match['rest']}"


def _can_be_named(path: str) -> bool:
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False

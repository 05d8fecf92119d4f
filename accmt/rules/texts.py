"""Texts of unknown origin, made fit to be seen: names and messages from files, from tools, and from data.

Every floor may call it. What is printed anywhere in the package goes through `shown`, at the one place of its floor:
`accmt.display.console` for a training, `accmt.cli.output` for the command line.
"""

from __future__ import annotations

import re
import unicodedata

# Control characters, halves of surrogate pairs, separators of lines, and what changes the direction of writing or is
# not seen at all.
_STEERING = ("Cc", "Cs", "Zl", "Zp", "Cf")
_JOINERS = "\u200c\u200d"  # several scripts and most emoji need them

# User and password stand before an '@'; a password that holds a '/' is recognized by not being the number of a port.
_USER = re.compile(r"(?<=://)(?:[^\s/?#'\"<>]*@|[^\s/?#@:'\"<>]*:(?!\d{1,5}(?![^\s/?#'\"<>]))[^\s'\"<>]*@)")
_SECRET = re.compile(
    r"(?<=[?&;])([\w.-]*(?:token|secret|passw|pwd|credential|signature|sig|auth|key)[\w.-]*=)(?!\*{3})[^\s&;#'\"<>]+",
    re.IGNORECASE,
)


def plain(text: object, *, lines: bool = False) -> str:
    r"""A text in which what would steer a terminal, or hide something, is written as `\x1b`.

    Args:
        text: The text.
        lines: Keep the ends of lines: the text has several, each made by us.
    """
    written = str(text)
    if written.isprintable():
        return written
    return "".join(_visible(char, lines) for char in written)


def masked(text: object) -> str:
    """A text without the user, the password and the tokens in its addresses, so that it may be shown and written."""
    written = str(text)
    if "://" not in written:
        return written
    return _SECRET.sub(r"\1***", _USER.sub("", written))


def shown(text: object, *, lines: bool = False) -> str:
    """A text as it may be printed: `plain` and `masked`."""
    return plain(masked(text), lines=lines)


def _visible(char: str, lines: bool) -> str:
    if (lines and char == "\n") or char in _JOINERS or unicodedata.category(char) not in _STEERING:
        return char
    return char.encode("unicode_escape").decode()

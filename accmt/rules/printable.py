"""Makes texts of unknown origin safe to print: names and messages from files, tools and data.

Every layer may call it. All printed text in the package goes through `shown`, at one place per layer:
`accmt.display.console` for a training, `accmt.cli.output` for the command line.
"""

from __future__ import annotations

import re
import unicodedata

# Control characters, lone surrogates, line separators, and characters that are invisible or change the direction of
# writing.
_STEERING = ("Cc", "Cs", "Zl", "Zp", "Cf")
_JOINERS = "\u200c\u200d"  # several scripts and most emoji need them

# User and password precede an '@'; a password that contains a '/' is recognized because it is not a port number.
_USER = re.compile(r"(?<=://)(?:[^\s/?#'\"<>]*@|[^\s/?#@:'\"<>]*:(?!\d{1,5}(?![^\s/?#'\"<>]))[^\s'\"<>]*@)")
_SECRET = re.compile(
    r"(?<=[?&;])([\w.-]*(?:token|secret|passw|pwd|credential|signature|sig|auth|key)[\w.-]*=)(?!\*{3})[^\s&;#'\"<>]+",
    re.IGNORECASE,
)


def escaped(text: object, *, lines: bool = False) -> str:
    r"""Escape characters that would control a terminal or hide something, as in `\x1b`.

    Args:
        text: The text.
        lines: Keep line breaks: the text has several lines, each made by us.
    """
    written = str(text)
    if written.isprintable():
        return written
    return "".join(_visible(char, lines) for char in written)


def masked(text: object) -> str:
    """Remove user, password and tokens from the URLs in a text, so that it is safe to show and to write."""
    written = str(text)
    if "://" not in written:
        return written
    return _SECRET.sub(r"\1***", _USER.sub("", written))


def shown(text: object, *, lines: bool = False) -> str:
    """Return a text that is safe to print: `masked` and `escaped`."""
    return escaped(masked(text), lines=lines)


def _visible(char: str, lines: bool) -> str:
    if (lines and char == "\n") or char in _JOINERS or unicodedata.category(char) not in _STEERING:
        return char
    return char.encode("unicode_escape").decode()

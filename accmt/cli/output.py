"""Where the command line writes: nothing that steers a terminal, and no password, gets through here."""

from __future__ import annotations

import json
import sys
from typing import Any, TextIO

from accmt.rules.texts import shown


def write(line: str = "") -> None:
    """Write a line, or several of ours, to stdout."""
    _write(sys.stdout, f"{line}\n")


def complain(line: str) -> None:
    """Write a line, or several of ours, to stderr."""
    _write(sys.stderr, f"{line}\n")


def write_json(entry: Any) -> None:
    """Write a value as a line of strict JSON to stdout: its escapes are those of JSON."""
    sys.stdout.write(json.dumps(entry, allow_nan=False).replace("\x7f", "\\u007f") + "\n")


def fitting(text: str, stream: TextIO) -> str:
    """A text as a stream can write it: what its encoding lacks stands there as `\\u1234`."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _write(stream: TextIO, text: str) -> None:
    stream.write(fitting(shown(text, lines=True), stream))

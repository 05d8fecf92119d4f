"""Output of the command line: no terminal control sequence and no password gets through."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

from accmt.rules.printable import shown


def write(line: str = "") -> None:
    """Write one or several lines of our own to stdout."""
    _write(sys.stdout, f"{line}\n")


def complain(line: str) -> None:
    """Write one or several lines of our own to stderr."""
    _write(sys.stderr, f"{line}\n")


def write_json(entry: Any) -> None:
    """Write a value to stdout as a line of strict JSON, with JSON's escapes."""
    sys.stdout.write(json.dumps(entry, allow_nan=False).replace("\x7f", "\\u007f") + "\n")


def write_shell(environment: Mapping[str, str], program: Iterable[str]) -> None:
    """Write a shell script that starts a program in an environment to stdout, as it is: somebody may run it."""
    for name, value in environment.items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
    sys.stdout.write(shlex.join(program) + "\n")


def fitting(text: str, stream: TextIO) -> str:
    """Escape characters that the stream's encoding lacks, such as `\\u1234`."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _write(stream: TextIO, text: str) -> None:
    stream.write(fitting(shown(text, lines=True), stream))

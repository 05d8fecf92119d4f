"""Output of the command line: no terminal control sequence and no password gets through."""

from __future__ import annotations

import csv
import json
import shlex
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from accmt.rules.printable import shown

if TYPE_CHECKING:
    from rich.table import Table

_NATURAL = 10_000  # columns of an output that is not a terminal: nothing in it is wrapped


def write(line: str = "") -> None:
    """Write one or several lines of our own to stdout."""
    _write(sys.stdout, f"{line}\n")


def complain(line: str) -> None:
    """Write one or several lines of our own to stderr."""
    _write(sys.stderr, f"{line}\n")


def print_json(entry: Any) -> None:
    """Write a value to stdout as a line of strict JSON, with JSON's escapes."""
    sys.stdout.write(json.dumps(entry, allow_nan=False).replace("\x7f", "\\u007f") + "\n")


def print_csv(rows: Iterable[Iterable[object]]) -> None:
    """Write rows to stdout as CSV."""
    cells = ([fitting(shown(cell), sys.stdout) for cell in row] for row in rows)
    csv.writer(sys.stdout, lineterminator="\n").writerows(cells)


def write_shell(environment: Mapping[str, str], program: Iterable[str]) -> None:
    """Write a shell script that starts a program in an environment to stdout, unchanged, because someone may run it."""
    for name, value in environment.items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
    sys.stdout.write(shlex.join(program) + "\n")


def write_rich(*parts: Table | str) -> None:
    """Write tables and paragraphs to stdout, wrapped to the width of the terminal, if it is one."""
    from rich.text import Text

    from accmt.display.console import PlainConsole

    console = PlainConsole(file=sys.stdout, width=None if sys.stdout.isatty() else _NATURAL)
    for part in parts:
        with console.capture() as capture:  # captured, because rich would exit the program on a broken pipe
            console.print(Text(shown(part)) if isinstance(part, str) else part)
        for line in capture.get().splitlines():
            sys.stdout.write(fitting(f"{line.rstrip()}\n", sys.stdout))


def table(*columns: str) -> Table:
    """Return a table of texts: the first and the last column are left-aligned, those between right-aligned."""
    from rich.table import Table

    result = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        is_outer = column in (columns[0], columns[-1])
        result.add_column(column, justify="left" if is_outer else "right", overflow="fold")
    return result


def fitting(text: str, stream: TextIO) -> str:
    """Escape characters that the stream's encoding lacks, such as `\\u1234`."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _write(stream: TextIO, text: str) -> None:
    stream.write(fitting(shown(text, lines=True), stream))

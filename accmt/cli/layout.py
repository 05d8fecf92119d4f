"""Tables of the command line: a row is a line, and where a terminal is too narrow, what has no room goes beneath."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from accmt.cli.output import fitting
from accmt.display.console import PlainConsole

_GAP = "  "
_INDENT = " " * 4
_NARROWEST = 10


@dataclass(frozen=True, slots=True)
class Row:
    """A row: the first cell is aligned left, the others right; `state` and `note` follow. One cell is a heading."""

    cells: tuple[str, ...]
    state: str = ""
    note: str = ""
    style: str = ""


def table(header: Row, rows: Sequence[Row], width: int | None) -> list[Text]:
    """The lines of a table, as narrow as `width` where that can be; None for as wide as it needs to be."""
    full = [row for row in (header, *rows) if len(row.cells) > 1]
    widths = [max(cell_len(row.cells[column]) for row in full) for column in range(len(header.cells))]
    if width is not None:
        state = max(cell_len(row.state) for row in full)
        room = width - sum(widths[1:]) - state - len(_GAP) * len(widths)
        widths[0] = min(widths[0], max(room, _NARROWEST))
    lines = [Text(f"{_cells(header, widths)}{header.state}", "bold")]
    for row in rows:
        lines += _lines(row, widths, width)
    return lines


def paragraph(text: str, width: int | None) -> list[Text]:
    """A sentence, its further lines indented."""
    return [Text(line) for line in textwrap.wrap(text, width or 10**6, subsequent_indent=_INDENT)]


def terminal_width() -> int | None:
    """The width of the terminal, None where nobody watches."""
    return Console(file=sys.stdout).width if sys.stdout.isatty() else None


def write_lines(lines: Iterable[Text]) -> None:
    """Write lines to stdout, in colours where a terminal shows them."""
    console = PlainConsole(file=sys.stdout)
    for line in lines:
        line.rstrip()
        with console.capture() as capture:  # to write by itself, rich would end the program where nobody reads on
            console.print(line, soft_wrap=True)
        sys.stdout.write(fitting(capture.get(), sys.stdout))


def bytes_in_words(size: int) -> str:
    """Such as 1.5 MiB."""
    number = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{size} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def age_in_words(seconds: float) -> str:
    """Such as 5 min."""
    if seconds < -1:
        return "future"
    if seconds < 60:
        return f"{max(0, int(seconds))} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min"
    return f"{int(seconds // 3600)} h" if seconds < 48 * 3600 else f"{int(seconds // 86400)} days"


def _lines(row: Row, widths: Sequence[int], width: int | None) -> list[Text]:
    if len(row.cells) == 1:
        return [Text(row.cells[0]), *_beneath(row, width)]
    if cell_len(row.cells[0]) > widths[0]:
        return [Text(row.cells[0]), *_lines(replace(row, cells=("", *row.cells[1:])), widths, width)]
    cells = _cells(row, widths)
    tail = f"{row.state}: {row.note}" if row.state and row.note else row.state or row.note
    if row.note and width is not None and cell_len(cells) + cell_len(tail) > width:
        return [Text.assemble(cells, (row.state, row.style)), *_beneath(row, width)]
    return [Text.assemble(cells, (tail, row.style))]


def _beneath(row: Row, width: int | None) -> list[Text]:
    room = 10**6 if width is None else max(_NARROWEST, width - len(_INDENT))
    return [Text(f"{_INDENT}{piece}", row.style) for piece in textwrap.wrap(row.note, room)]


def _cells(row: Row, widths: Sequence[int]) -> str:
    """The cells of a row, each as wide as its column, and the gap before its state."""
    padding = [" " * (width - cell_len(cell)) for cell, width in zip(row.cells, widths, strict=True)]
    cells = [row.cells[0] + padding[0], *map(str.__add__, padding[1:], row.cells[1:])]
    return _GAP.join([*cells, ""])

"""Tables of the command line: one line per row; on a terminal too narrow, what does not fit goes below."""

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
    """A row: the first cell is left-aligned, the others right; `state` and `note` follow. One cell is a heading."""

    cells: tuple[str, ...]
    state: str = ""
    note: str = ""
    style: str = ""


def table(header: Row, rows: Sequence[Row], width: int | None) -> list[Text]:
    """Return the lines of a table, at most `width` wide if possible; None for its natural width."""
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
    """Wrap a sentence, with its further lines indented."""
    return [Text(line) for line in textwrap.wrap(text, width or 10**6, subsequent_indent=_INDENT)]


def terminal_width() -> int | None:
    """Return the width of the terminal, or None if stdout is not a terminal."""
    return Console(file=sys.stdout).width if sys.stdout.isatty() else None


def write_lines(lines: Iterable[Text]) -> None:
    """Write lines to stdout, in color if the terminal shows it."""
    console = PlainConsole(file=sys.stdout)
    for line in lines:
        line.rstrip()
        with console.capture() as capture:  # captured, because rich would exit the program on a broken pipe
            console.print(line, soft_wrap=True)
        sys.stdout.write(fitting(capture.get(), sys.stdout))


def bytes_in_words(size: int) -> str:
    """Format a size, such as 1.5 MiB."""
    number = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{size} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def age_in_words(seconds: float) -> str:
    """Format an age, such as 5 min."""
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
    """Pad the cells of a row to the widths of their columns, and add the gap before its state."""
    padding = [" " * (width - cell_len(cell)) for cell, width in zip(row.cells, widths, strict=True)]
    cells = [row.cells[0] + padding[0], *map(str.__add__, padding[1:], row.cells[1:])]
    return _GAP.join([*cells, ""])

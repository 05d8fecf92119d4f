"""Lines for a terminal of some width, for a pipe or a file, and pictures of a metric in one line."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.cells import cell_len

from accmt.files.paths import shortened

_WORDS = re.compile(r"\s*(?:(?<!\S)'[^']*'\S*|\S+)", re.ASCII)
_KEPT = "\N{NO-BREAK SPACE}"  # replaced by a blank once lines are wrapped
_BLOCKS, _ASCII = "▁▂▃▄▅▆▇█", "_.-:=+*#"
_MOST_POINTS = 24


def wrapped(text: str, width: int | None, indent: int = 4) -> str:
    """Break a line between words, not within quoted texts or what is kept `together`; for a pipe (None), nowhere."""
    if width is None:
        return text.replace(_KEPT, " ")
    lines = [""]
    for word in _WORDS.findall(text):
        if lines[-1].strip() and cell_len(lines[-1] + word) > width:
            lines.append(" " * indent + word.lstrip())
        else:
            lines[-1] += word
    return "\n".join(lines).replace(_KEPT, " ")


def together(text: str) -> str:
    """Return a text that `wrapped` and `aligned` do not break."""
    return text.replace(" ", _KEPT)


def aligned(rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """Return a line for each row of cells, in columns if the width has room for them; no line ends with blanks."""
    sizes = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    if width is None or sum(sizes) + 2 * (len(sizes) - 1) > width:
        return [wrapped("  ".join(filter(None, row)), width) for row in rows]
    padded = ([cell + " " * (size - cell_len(cell)) for cell, size in zip(row, sizes, strict=True)] for row in rows)
    return ["  ".join(cells).rstrip().replace(_KEPT, " ") for cells in padded]


def sparkline(values: Sequence[float], *, ascii_only: bool = False) -> str:
    """Draw values, oldest first, in a line of at most 24 characters; empty for fewer than two numbers."""
    if len(values) > _MOST_POINTS:
        values = [values[-1 - (len(values) - 1) * n // (_MOST_POINTS - 1)] for n in reversed(range(_MOST_POINTS))]
    numbers = [value for value in values if math.isfinite(value)]
    if len(numbers) < 2:
        return ""
    levels, low = _ASCII if ascii_only else _BLOCKS, min(numbers) / 2  # halves, because a difference may overflow
    scale = (len(levels) - 1) / (max(numbers) / 2 - low or 1.0)
    return "".join(levels[round((value / 2 - low) * scale)] if math.isfinite(value) else "?" for value in values)


def for_shell(path: Path) -> str:
    """Return a path as a shell takes it: relative if it is below the current folder, quoted if it has to be."""
    return shlex.quote(str(shortened(path)))

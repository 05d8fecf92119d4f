"""Small tables for notebooks: HTML that follows the colours of the page, light or dark, with every text escaped."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from accmt.rules.printable import shown

_MOST_ROWS = 50
_CELL = "padding: 0.2em 0.8em; vertical-align: top; border: 0; border-bottom: 1px solid rgba(128, 128, 128, 0.3);"
_HEAD = f"{_CELL} text-align: left; font-weight: 600;"
_NOTE = "text-align: left; padding: 0.3em 0; opacity: 0.75; caption-side: bottom;"

Cell = str | int | float | None


def html_table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Return a table with a row of column names; numbers are aligned to the right, None is an empty cell.

    Of many rows only the last are shown, and a line below says how many there are.
    """
    left_out = max(0, len(rows) - _MOST_ROWS)
    head = "".join(f'<th style="{_HEAD}">{_text(name)}</th>' for name in columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows[left_out:])
    note = f'<caption style="{_NOTE}">the last {_MOST_ROWS} of {len(rows)} rows</caption>' if left_out else ""
    return _framed(caption, f"{note}<thead><tr>{head}</tr></thead><tbody>{body}</tbody>")


def html_facts(caption: str, facts: Mapping[str, Cell]) -> str:
    """Return a table of two columns: names and values."""
    rows = "".join(
        f'<tr><th style="{_HEAD}">{_text(name)}</th>{_cell(value, "left")}</tr>' for name, value in facts.items()
    )
    return _framed(caption, f"<tbody>{rows}</tbody>")


def number(value: float) -> str:
    """Return a value of a metric as people read it."""
    return f"{value:.6g}"


def _framed(caption: str, inner: str) -> str:
    title = f'<div style="font-weight: 600; margin: 0.4em 0 0.2em">{_text(caption)}</div>'
    return (
        f'<div style="overflow-x: auto">{title}'
        f'<table style="border-collapse: collapse; margin: 0; font-variant-numeric: tabular-nums">{inner}</table></div>'
    )


def _cell(value: Cell, numbers: str = "right") -> str:
    align = "left" if isinstance(value, str) else numbers
    written = "" if value is None else _text(value) if isinstance(value, str) else _figure(value)
    return f'<td style="{_CELL} text-align: {align}">{written}</td>'


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else number(value)


def _text(value: str) -> str:
    return html.escape(shown(value))

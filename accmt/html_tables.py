"""Small tables for notebooks: HTML in the colours of the page, light or dark, with every text escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from accmt.rules.printable import shown

Cell = str | int | float | None
_MOST_ROWS = 50
_STYLE = "padding: 0.2em 0.8em; vertical-align: top; text-align:"


def html_table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """Return a table; numbers are aligned to the right, None is an empty cell. Of many rows, the last are shown."""
    listed = list(rows)
    caption += f": the last {_MOST_ROWS} of {len(listed)} rows" if len(listed) > _MOST_ROWS else ""
    head = "".join(f'<th style="{_STYLE} left">{html.escape(shown(name))}</th>' for name in columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in listed[-_MOST_ROWS:])
    table = f'<table style="margin: 0.3em 0"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div style="overflow-x: auto"><b>{html.escape(shown(caption))}</b>{table}</div>'


def _cell(value: Cell) -> str:
    if isinstance(value, int | float):
        return f'<td style="{_STYLE} right">{f"{value:,}" if isinstance(value, int) else f"{value:.6g}"}</td>'
    return f'<td style="{_STYLE} left">{html.escape(shown(value or ""))}</td>'

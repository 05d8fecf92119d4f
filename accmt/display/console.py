"""Console for all output with colours or tables: only rich may emit terminal control codes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from accmt.rules.printable import shown


class PlainConsole(Console):
    """A console that prints texts literally: no markup, no emoji codes, and no control characters but line breaks."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "highlight": False, "emoji": False, **options})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text = shown(segment.text, lines=True).encode(self.encoding, "backslashreplace").decode(self.encoding)
            yield segment if segment.control else segment._replace(text=text)

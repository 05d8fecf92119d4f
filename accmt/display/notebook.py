"""A training in a notebook: its progress in one output, and its decisions as a table."""

from __future__ import annotations

import html
import sys
from collections.abc import Callable, Iterator
from contextvars import copy_context
from threading import Event, Thread
from typing import Any
from uuid import uuid4

from accmt.html_tables import html_table
from accmt.rules import Decision

_PAUSE = 0.25  # seconds
_STYLE = "white-space: pre-wrap; font-variant-numeric: tabular-nums"


class Decisions(list[Decision]):
    """Decisions of a training, oldest first: a list that a notebook shows as a table."""

    def __repr__(self) -> str:
        last = f", the last at step {self[-1].progress.step}" if self else ""
        return f"Decisions({len(self)}{last})"

    def _repr_html_(self) -> str:
        rows = ((one.progress.evaluation, one.progress.step, *cells) for one in self for cells in _cells(one))
        return html_table(repr(self), ("evaluation", "step", "rule", "verdict", "why"), rows)


def _cells(decision: Decision) -> Iterator[tuple[str, str, str]]:
    yield from ((verdict.rule, verdict.outcome.value, verdict.reason) for verdict in decision.all_verdicts)
    if decision.stop is not None:
        yield decision.stop.asked_by, "stop", decision.stop.reason


def notebook_shell() -> Any | None:
    """Return IPython's shell if this process is the kernel of a notebook; None elsewhere, without importing IPython."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell if "ZMQInteractiveShell" in [kind.__name__ for kind in type(shell).__mro__] else None


class NotebookBar:
    """Progress bar in one output of a notebook, drawn a few times per second by a thread; lines appear below it.

    Args:
        shell: IPython's shell.
        drawn: Loss -> the step, the number of steps (None if unknown), and a text.
    """

    def __init__(self, shell: Any, drawn: Callable[[float | None], tuple[int, int | None, str]]) -> None:
        self.loss: float | None = None
        self._publish, self._drawn = shell.display_pub.publish, drawn
        self._output = {"display_id": uuid4().hex}
        self._shown: tuple[int, int | None, str] | None = None
        self._ended = Event()
        # In the context of the cell, so that the output belongs to it.
        self._thread = Thread(target=copy_context().run, args=(self._follow,), daemon=True)

    def start(self) -> None:
        self._draw()
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()
        self._draw()

    def _follow(self) -> None:
        while not self._ended.wait(_PAUSE):
            self._draw()

    def _draw(self) -> None:
        step, steps, text = now = self._drawn(self.loss)
        if now != self._shown:
            bar = "" if steps is None else f'<progress value="{step}" max="{max(1, steps)}"></progress> '
            data = {"text/html": f'<div style="{_STYLE}">{bar}{html.escape(text)}</div>', "text/plain": text}
            self._publish(data=data, transient=self._output, update=self._shown is not None)
            self._shown = now

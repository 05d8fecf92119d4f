"""A training in a notebook: its progress in one output, and its decisions as a table."""

from __future__ import annotations

import html
import sys
from collections.abc import Callable
from contextvars import copy_context
from threading import Event, Thread
from typing import Any
from uuid import uuid4

from accmt.html_tables import Cell, html_table, number
from accmt.rules import Decision

_PAUSE = 0.25  # seconds
_COLUMNS = ("evaluation", "step", "epoch", "rule", "values", "verdict", "why")


class Decisions(list[Decision]):
    """Decisions of a training, oldest first: a list that a notebook shows as a table."""

    def __repr__(self) -> str:
        last = f", the last at step {self[-1].progress.step}" if self else ""
        return f"Decisions({len(self)}{last})"

    def _repr_html_(self) -> str:
        rows: list[list[Cell]] = []
        for decision in self:
            progress = decision.progress
            place: list[Cell] = [progress.evaluation, progress.step, progress.epoch]
            for verdict in decision.verdicts:
                values = ",\N{NO-BREAK SPACE}".join(map(number, verdict.values))
                rows.append([*place, verdict.rule, values, verdict.outcome.value, verdict.reason])
            if decision.stop is not None:
                rows.append([*place, decision.stop.asked_by, None, "stop", decision.stop.reason])
        return html_table(repr(self), _COLUMNS, rows)


def notebook_shell() -> Any | None:
    """Return IPython's shell if this process is the kernel of a notebook; None elsewhere, without importing IPython."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    kinds = [kind.__name__ for kind in type(shell).__mro__]
    return shell if "ZMQInteractiveShell" in kinds else None


class NotebookBar:
    """Progress bar in one output of a notebook, drawn a few times per second by a thread, at no cost to the loop.

    Lines that the training prints appear below it.

    Args:
        shell: IPython's shell.
        drawn: Loss -> the step, the number of steps (None if unknown), and a text.
    """

    def __init__(self, shell: Any, drawn: Callable[[float | None], tuple[int, int | None, str]]) -> None:
        self.loss: float | None = None
        self._publisher, self._drawn = shell.display_pub, drawn
        self._output = {"display_id": uuid4().hex}
        self._shown: tuple[int, int | None, str] | None = None
        self._ended = Event()
        # In the context of the cell, so that the output belongs to it.
        self._thread = Thread(target=copy_context().run, args=(self._follow,), daemon=True)

    def start(self) -> None:
        """Show the bar."""
        self._draw()
        self._thread.start()

    def stop(self) -> None:
        """Draw the bar for the last time."""
        self._ended.set()
        self._thread.join()
        self._draw()

    def _follow(self) -> None:
        while not self._ended.wait(_PAUSE):
            self._draw()

    def _draw(self) -> None:
        now = self._drawn(self.loss)
        if now != self._shown:
            step, steps, text = now
            bar = "" if steps is None else f'<progress value="{step}" max="{max(1, steps)}"></progress> '
            style = "font-variant-numeric: tabular-nums; white-space: pre-wrap"
            written = {"text/html": f'<div style="{style}">{bar}{html.escape(text)}</div>', "text/plain": text}
            self._publisher.publish(data=written, transient=self._output, update=self._shown is not None)
            self._shown = now

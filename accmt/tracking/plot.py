"""Figures, such as that of a history. Imports matplotlib, so only what draws imports this module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from accmt.rules.printable import shown

if TYPE_CHECKING:
    from accmt.tracking.history import HistoryValue

_ACROSS, _MARKS = 3, "^svDoP*X"


class InlineFigure(Figure):
    """Figure that a notebook shows without pyplot, whose figures would be shown again at the end of the cell."""

    def _repr_png_(self) -> bytes:
        written = BytesIO()
        self.savefig(written, format="png")
        return written.getvalue()


def draw_history(values: Sequence[HistoryValue], savings: Mapping[str, Sequence[int]]) -> Figure:
    """Draw a line per dataset in the axes of each metric, and above the axis of steps where each rule saved."""
    metrics = list(dict.fromkeys(value.metric for value in values))
    across, down = min(len(metrics), _ACROSS), -(-len(metrics) // _ACROSS)
    figure, marks = InlineFigure(figsize=(4.2 * across, 3 * down + 0.4), layout="constrained"), []
    for place, metric in enumerate(metrics, 1):
        axes = figure.add_subplot(down, across, place, title=_plain(metric), xlabel="step")
        for dataset in dict.fromkeys(value.dataset for value in values if value.metric == metric):
            points = [(one.step, one.value) for one in values if (one.metric, one.dataset) == (metric, dataset)]
            axes.plot(*zip(*points, strict=True), marker=".", label=_plain(dataset or "training"))
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axes.legend()
        marks = [_mark(axes, row, steps) for row, steps in enumerate(savings.values())]
    figure.legend(marks, [_plain(f"saved by {rule}") for rule in savings], loc="outside lower center", frameon=False)
    return figure


def _mark(axes: Axes, row: int, steps: Sequence[int]) -> Line2D:
    heights, place = [0.03 + 0.05 * row] * len(steps), axes.get_xaxis_transform()
    return axes.plot(steps, heights, f"C{9 - row % 8}{_MARKS[row % 8]}", markersize=5, transform=place)[0]


def _plain(text: str) -> str:
    """Return a text that is drawn as it is: no formula, and no underscore first, which would hide it in legends."""
    return shown(f" {text}" if text.startswith("_") else text).replace("$", r"\$")

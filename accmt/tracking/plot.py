"""Figure of a history. Imports matplotlib, so only what draws imports this module."""

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

_WIDTH, _HEIGHT, _ACROSS = 4.2, 3.0, 3
_MARKS = "^svDoP*X"


class HistoryFigure(Figure):
    """Figure that a notebook shows without pyplot, whose figures would be shown again at the end of the cell."""

    def _repr_png_(self) -> bytes:
        written = BytesIO()
        self.savefig(written, format="png")
        return written.getvalue()


def draw_history(values: Sequence[HistoryValue], savings: Mapping[str, Sequence[int]]) -> Figure:
    """Draw a line per dataset in the axes of each metric, and below the lines the steps at which each rule saved."""
    metrics = list(dict.fromkeys(value.metric for value in values))
    across = min(len(metrics), _ACROSS)
    down = -(-len(metrics) // across)
    figure = HistoryFigure(figsize=(_WIDTH * across, _HEIGHT * down + 0.4), layout="constrained")
    handles: dict[str, Line2D] = {}
    for place, metric in enumerate(metrics, 1):
        axes = figure.add_subplot(down, across, place)
        _draw_metric(axes, metric, values)
        handles = dict(zip(savings, _mark(axes, savings), strict=True))
    if handles:
        labels = [_plain(f"saved by {rule}") for rule in handles]
        figure.legend(list(handles.values()), labels, loc="outside lower center", frameon=False)
    return figure


def _draw_metric(axes: Axes, metric: str, values: Sequence[HistoryValue]) -> None:
    lines: dict[str, list[tuple[int, float]]] = {}
    for value in values:
        if value.metric == metric:
            lines.setdefault("training" if value.dataset is None else value.dataset, []).append(
                (value.step, value.value)
            )
    for dataset, points in lines.items():
        steps, numbers = zip(*points, strict=True)
        axes.plot(steps, numbers, marker=".", label=_plain(dataset))
    axes.set_title(_plain(metric))
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.grid(alpha=0.3)
    axes.legend()


def _mark(axes: Axes, savings: Mapping[str, Sequence[int]]) -> list[Line2D]:
    """Mark the steps at which rules saved, in a strip above the axis of steps: a row for each rule."""
    marks = []
    for row, steps in enumerate(savings.values()):
        style = {"marker": _MARKS[row % len(_MARKS)], "linestyle": "", "markersize": 5, "color": f"C{9 - row % 8}"}
        heights = [0.03 + 0.05 * row] * len(steps)
        marks += axes.plot(steps, heights, transform=axes.get_xaxis_transform(), **style)  # type: ignore[arg-type]
    return marks


def _plain(text: str) -> str:
    """Return a text that matplotlib draws as it is: no formula, and no underscore first, which hides it in legends."""
    written = shown(text).replace("$", r"\$")
    return f" {written}" if written.startswith("_") else written

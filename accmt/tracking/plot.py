"""Figures, such as that of a history. Imports matplotlib, so only what draws imports this module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Point:
    """One setting: what it saves, in per cent, what it loses, its label, whether it is on the Pareto front, and the
    series that it belongs to."""

    saved: float
    lost: float
    label: str
    front: bool
    series: str = ""


def draw_trade_off(rules: Mapping[str, Sequence[Point]]) -> Figure:
    """Draw the loss of quality of settings over the training that they save, and a line along the Pareto front."""
    across, down = min(len(rules), _ACROSS) or 1, -(-len(rules) // _ACROSS) or 1
    figure = InlineFigure(figsize=(6 * across, 4 * down), layout="constrained")
    for place, (rule, points) in enumerate(rules.items(), 1):
        axes = figure.add_subplot(
            down, across, place, title=_plain(rule), xlabel="steps saved, %", ylabel="lost (mean)"
        )
        front = sorted((point for point in points if point.front), key=lambda point: point.saved)
        axes.plot([p.saved for p in front], [p.lost for p in front], color="0.7", zorder=1, label="Pareto front")
        for number, series in enumerate(dict.fromkeys(point.series for point in points)):
            own = [point for point in points if point.series == series]
            places, mark = ([p.saved for p in own], [p.lost for p in own]), _MARKS[number % len(_MARKS)]
            axes.scatter(*places, s=24, zorder=2, marker=mark, label=_plain(series))
        # Below to the right of its mark, where no other setting lies: one there would beat it.
        for point in _apart([point for point in points if point.front and point.label]):
            axes.annotate(point.label, (point.saved, point.lost), xytext=(4, -11), textcoords="offset points", size=9)
        axes.margins(0.08, 0.12)
        axes.legend(title="labels: patience", title_fontsize=8, fontsize=8)
    return figure


def _apart(points: Sequence[Point]) -> list[Point]:
    """Return points whose labels do not cover each other, from that which saves most; of equal ones, the first."""
    across = max((point.saved for point in points), default=0.0) or 1.0
    down = max((point.lost for point in points), default=0.0) - min((point.lost for point in points), default=0.0)
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: -point.saved):
        near = (p for p in kept if abs(p.saved - point.saved) < 0.05 * across)
        if not any(abs(p.lost - point.lost) <= 0.06 * down for p in near):
            kept.append(point)
    return kept


def _mark(axes: Axes, row: int, steps: Sequence[int]) -> Line2D:
    heights, place = [0.03 + 0.05 * row] * len(steps), axes.get_xaxis_transform()
    return axes.plot(steps, heights, f"C{9 - row % 8}{_MARKS[row % 8]}", markersize=5, transform=place)[0]


def _plain(text: str) -> str:
    """Return a text that is drawn as it is: no formula, and no underscore first, which would hide it in legends."""
    return shown(f" {text}" if text.startswith("_") else text).replace("$", r"\$")

"""Charts of a report, as plotly's figures in plain data. Names of colours begin with @: the page knows those of its
scheme; two hexadecimal digits after a + are their opacity. Many points are thinned out here, so that the page stays
fluid."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accmt.report.band import bands_of, differ_by_seed
from accmt.report.training import MEASURED, Curve, Event, RuleCard, TrainingReport, brief
from accmt.rules import Outcome, Verdict
from accmt.rules.printable import shown
from accmt.rules.store import TRAIN_LOSS, VALID_LOSS

MOST_POINTS = 600
"""Points of a line; each pair of them stands for the lowest and the highest value of a stretch."""

_MOST_MARKS = 200  # of a rule; with up to so many evaluations, the reasons for not saving are shown as well
_POINTS_IN_ALL, _FEWEST_POINTS = 60_000, 50
_MARKS_IN_ALL, _FEWEST_MARKS = 1_000, 10
_LONGEST = 60
_COLOURS = 8
_DASHES = {"solid": "", "dash": "6 3", "dot": "2 2", "dashdot": "6 2 2 2", "longdash": "9 3"}
_SYMBOLS = {"circle": "●", "diamond": "◆", "square": "■", "triangle-up": "▲", "star": "★", "cross": "✚"}
_OPEN = str.maketrans("●◆■▲★✚", "○◇□△☆✛")  # those of rules that the training did not have
_ROWS = {"evaluation": "line-ns-open", "saved": "circle", "checkpoint": "square", "resumed": "triangle-right"}
_ROWS |= {"signal": "diamond", "stop": "x", "end": "octagon"}
_LAYOUT: Mapping[str, Any] = {
    **{"margin": {"l": 52, "r": 10, "t": 8, "b": 32}, "height": 300, "showlegend": False, "hovermode": "closest"},
    **{"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "font": {"color": "@soft", "size": 12}},
    "hoverlabel": {"bgcolor": "@card", "bordercolor": "@line", "font": {"color": "@ink"}, "align": "left"},
}
_AXIS = {"gridcolor": "@line", "zeroline": False, "linecolor": "@line", "automargin": True}


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart: its title, what it shows in words, plotly's data and layout, and the keys of its legend: name, colour
    without @, symbol, and dashes of the line. The `legendgroup` of a trace is the number of its key."""

    title: str
    words: str
    data: tuple[Mapping[str, Any], ...]
    layout: Mapping[str, Any]
    keys: tuple[tuple[str, str, str, str], ...] = ()


def charts_of(trainings: Sequence[TrainingReport]) -> Iterator[Chart]:
    """Yield a chart for each metric: first those that rules rank by, then the losses, then other measurements.
    The training loss is drawn with the validation loss. The more lines and trainings there are, the fewer points and
    marks each of them gets."""
    metrics = dict.fromkeys(one.metric for training in trainings for card in training.cards for one in card.objectives)
    curves = dict.fromkeys(curve.metric for training in trainings for curve in training.curves)
    ordered = [*metrics, *sorted(curves, key=lambda name: name not in (VALID_LOSS, TRAIN_LOSS))]
    has_both = VALID_LOSS in ordered and TRAIN_LOSS in curves
    lines = sum(len(one.curves) + sum(len(card.objectives) for card in one.cards) for one in trainings)
    points = min(MOST_POINTS, max(_FEWEST_POINTS, _POINTS_IN_ALL // max(lines, 1)))
    marks = min(_MOST_MARKS, max(_FEWEST_MARKS, _MARKS_IN_ALL // max(len(trainings), 1)))
    for metric in dict.fromkeys(ordered):
        if metric == TRAIN_LOSS and has_both:
            continue
        drawn = (VALID_LOSS, TRAIN_LOSS) if metric == VALID_LOSS and has_both else (metric,)
        if differ_by_seed(trainings):
            yield _band_chart(drawn, trainings, points)
        else:
            yield _chart(drawn, trainings, points, marks)


def timeline(training: TrainingReport) -> Chart:
    """Return the chart of what happened, a row for each rule that saved and each other kind of event."""
    rows: dict[tuple[str, str], list[Event]] = {}
    for event in sorted(training.events, key=lambda event: list(_ROWS).index(event.kind)):
        rows.setdefault((event.kind, event.rule), []).append(event)
    data = []
    for row, ((kind, _), events) in enumerate(rows.items()):
        kept = events[:: -(-len(events) // _MOST_MARKS)]
        texts = [f"step {event.step:,}<br>{_broken(event.text or kind)}" for event in kept]
        marker = {"symbol": _ROWS[kind], "size": 9, "color": "@c0", "line": {"width": 1.5, "color": "@c0"}}
        points = {"x": [event.step for event in kept], "y": [row] * len(kept), "text": texts}
        data.append({"type": "scatter", "mode": "markers", "hoverinfo": "text", "marker": marker, **points})
    names = [plain(rule or kind, 22) for kind, rule in rows]
    axis = {"fixedrange": True, "range": [len(rows) - 0.5, -0.5], "tickvals": [*range(len(rows))], "ticktext": names}
    layout = {**_LAYOUT, "height": 50 + 34 * len(data), "yaxis": {**_AXIS, **axis}}
    words = f"{len(training.events):,} events; the list below has those other than evaluations"
    return Chart("By step", words, tuple(data), {**layout, "xaxis": _steps([training])})


def in_order(events: Sequence[Event]) -> list[Event]:
    """Return events in the order in which they happened: at one step, those without a time come first."""
    kinds = list(_ROWS)
    return sorted(events, key=lambda event: (event.step, event.time or 0.0, kinds.index(event.kind)))


def thinned(steps: Sequence[int], values: Sequence[float], most: int = MOST_POINTS) -> tuple[list[int], list[float]]:
    """Keep the first and the last point, and the lowest and the highest value of each of `most` / 2 stretches."""
    if len(steps) <= most:
        return list(steps), list(values)
    kept, size = {0, len(steps) - 1}, -(-len(steps) // (most // 2))
    for begin in range(0, len(steps), size):
        places = range(begin, min(begin + size, len(steps)))
        numbers = [place for place in places if math.isfinite(values[place])]
        kept |= {min(numbers, key=values.__getitem__), max(numbers, key=values.__getitem__)} if numbers else {begin}
    places_kept = sorted(kept)
    return [steps[place] for place in places_kept], [values[place] for place in places_kept]


def plain(text: str, most: int = _LONGEST) -> str:
    """Return a text that plotly draws as it is, without tags."""
    return html.escape(brief(text, most), quote=False)


def _chart(metrics: tuple[str, ...], trainings: Sequence[TrainingReport], points: int, marks: int) -> Chart:
    """Draw one training with a colour for each dataset, or several with a colour for each of them. `points` is the most
    of a line, and `marks` that of a rule."""
    data: list[Mapping[str, Any]] = []
    keys: dict[str, tuple[str, str, str, str]] = {}
    is_one, words = len(trainings) == 1, []
    rules = list(dict.fromkeys(card.name for training in trainings for card in training.cards))
    for number, training in enumerate(trainings):
        run, prefix = f"@c{number % _COLOURS}", "" if is_one else f"{training.name}: "
        for curve in [curve for metric in metrics for curve in training.curves if curve.metric == metric]:
            name = curve.dataset or ("training" if curve.metric == TRAIN_LOSS else curve.metric)
            known = list(keys).index(name) if name in keys else len(keys)
            dash = "dot" if curve.metric == TRAIN_LOSS else "solid" if is_one else list(_DASHES)[known % len(_DASHES)]
            colour = "@soft" if curve.metric == TRAIN_LOSS else f"@c{known % _COLOURS}"
            keys.setdefault(name, (name, colour[1:] if is_one else "soft", "", _DASHES[dash]))
            line = {"color": colour if is_one else run, "dash": dash, "width": 2}
            trace = {
                **_line(curve, line, points),
                "name": plain(prefix + name),
                "legendgroup": str(list(keys).index(name)),
            }
            data.append({**trace, "meta": {"run": number}})
            words.append(course_in_words(prefix + name, curve))
        for card in training.cards:
            places = [place for place, objective in enumerate(card.objectives) if objective.metric in metrics]
            symbol = list(_SYMBOLS)[rules.index(card.name) % len(_SYMBOLS)]
            drawn = f"{symbol}-open" if card.effect else symbol
            marker = {"symbol": drawn, "size": 8, "color": "@ink" if is_one else run}
            name = prefix + card.name
            traces = [one for place in places for one in _decided(card, place, name, marker, (points, marks))]
            if traces:
                key = card.name if card.effect else f"saved by {card.name}"
                mark = _SYMBOLS[symbol].translate(_OPEN) if card.effect else _SYMBOLS[symbol]
                keys.setdefault(key, (key, "ink" if is_one else "soft", mark, ""))
                group = {"legendgroup": str(list(keys).index(key)), "meta": {"run": number}, "type": "scatter"}
                data += [{**trace, **group} for trace in traces]
    shapes = list(_shades(trainings[0], metrics)) if is_one else []
    layout = {**_LAYOUT, "xaxis": _steps(trainings), "yaxis": _scale(metrics, data), "shapes": shapes}
    return Chart(" and ".join(metrics), "; ".join(words[:20]), tuple(data), layout, tuple(keys.values()))


def _band_chart(metrics: tuple[str, ...], trainings: Sequence[TrainingReport], points: int) -> Chart:
    """Draw trainings that differ by their seeds: a thin line for each, and their mean in a band, for each dataset."""
    data: list[Mapping[str, Any]] = []
    keys: dict[str, tuple[str, str, str, str]] = {}
    words = []
    for lowest, mean, highest in (band for metric in metrics for band in bands_of(trainings, metric)):
        name = mean.dataset or ("training" if mean.metric == TRAIN_LOSS else mean.metric)
        colour = "soft" if mean.metric == TRAIN_LOSS else f"c{len(keys) % _COLOURS}"
        group = {"legendgroup": str(len(keys))}
        keys[name] = (name, colour, "", "")
        line, edge = {"color": f"@{colour}", "width": 2}, {"color": f"@{colour}", "width": 0}
        for curve, more in ((lowest, {}), (highest, {"fill": "tonexty", "fillcolor": f"@{colour}+30"})):
            data.append({**_line(curve, edge, points), "mode": "lines", "hoverinfo": "skip", **more, **group})
        for number, training in enumerate(trainings):
            for curve in training.curves:
                if (curve.metric, curve.dataset) == (mean.metric, mean.dataset):
                    one = {
                        **_line(curve, {**line, "width": 1}, points),
                        "mode": "lines",
                        "opacity": 0.4,
                        "meta": {"run": number},
                    }
                    data.append({**one, "name": plain(f"{training.name}: {name}"), **group})
        data.append({**_line(mean, line, points), "name": plain(f"mean of {len(trainings)} seeds: {name}"), **group})
        words.append(course_in_words(f"mean of {len(trainings)} seeds on {name}", mean))
    layout = {**_LAYOUT, "xaxis": _steps(trainings), "yaxis": _scale(metrics, data), "shapes": []}
    return Chart(" and ".join(metrics), "; ".join(words[:20]), tuple(data), layout, tuple(keys.values()))


def _scale(metrics: tuple[str, ...], data: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the axis of the values; that of measurements, which are never below 0 and often constant, begins at 0."""
    if metrics[0] not in MEASURED.values():
        return _AXIS
    highest = max([y for trace in data for y in trace["y"] if y is not None], default=0)
    return {**_AXIS, "range": [0, min(1.08 * highest, 1e308) or 1]}


def _line(curve: Curve, line: Mapping[str, Any], most: int) -> dict[str, Any]:
    steps, values = thinned(curve.steps, curve.values, most)
    mode = "lines+markers" if len(steps) <= 60 else "lines"
    template = "%{fullData.name}<br><b>%{y:.6g}</b> at step %{x:,}<extra></extra>"
    points = {"x": steps, "y": list(map(_number, values)), "mode": mode, "line": line, "marker": {"size": 4}}
    return {"type": "scatter", "hovertemplate": template, **points}


def _decided(
    card: RuleCard, index: int, name: str, marker: Mapping[str, Any], most: tuple[int, int]
) -> Iterator[dict[str, Any]]:
    """Yield the incumbents of a rule as a step line, and marks where it saved, with the reasons in words; where there
    are few evaluations, the reasons for not saving are found in the same way. `most` are points and marks."""
    ranked = [(one.step, verdict) for one, verdict in card.verdicts if index < len(verdict.values)]
    held = [(step, v.kept[0].values[index]) for step, v in ranked if v.kept and index < len(v.kept[0].values)]
    if held:
        steps, values = thinned([step for step, _ in held], [value for _, value in held], most[0])
        line = {"color": marker["color"], "width": 1, "dash": "dot", "shape": "hv"}
        points = {"x": steps, "y": list(map(_number, values))}
        yield {"mode": "lines", "opacity": 0.7, "hoverinfo": "skip", "line": line, **points}
    saves = [pair for pair in ranked if pair[1].outcome is Outcome.SAVED]
    few = saves[:: -(-len(saves) // most[1]) or 1]
    note = f"; one of every {len(saves) // len(few)} saves is marked" if len(few) < len(saves) else ""
    points = _points(few, index)
    yield {**points, "hoverinfo": "skip", "marker": {**marker, "line": {"width": 1, "color": "@card"}}}
    # Of marks at one place, plotly takes the smaller one and then the last one: these are asked before lines.
    told = ranked if len(ranked) <= most[1] else few
    texts = [f"<b>{plain(name)}</b><br>{_broken(one.reason)}<br>at step {step:,}{note}" for step, one in told]
    unseen = {**marker, "size": 6, "opacity": 0}
    yield {**_points(told, index), "text": texts, "hoverinfo": "text", "marker": unseen}


def _points(verdicts: Sequence[tuple[int, Verdict]], index: int) -> dict[str, Any]:
    values = [_number(verdict.values[index]) for _, verdict in verdicts]
    return {"mode": "markers", "x": [step for step, _ in verdicts], "y": values}


def _shades(training: TrainingReport, metrics: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield what shades the steps before the `after` of a rule, and those after a stop."""
    shade = {"type": "rect", "yref": "paper", "y0": 0, "y1": 1, "fillcolor": "@shade", "layer": "below"}
    shade["line"] = {"width": 0}
    ends = set()
    for card in training.cards:
        if not any(objective.metric in metrics for objective in card.objectives):
            continue
        waited = [one.step for one, verdict in card.verdicts if verdict.reason.startswith("blocked by after ")]
        if waited:
            yield {**shade, "x0": 0, "x1": waited[-1], "label": _label(f"{card.name} waits for its ‘after’")}
        if card.effect and card.verdicts:
            ends.add(card.verdicts[-1][0].step)
    beside = {"textangle": 0, "textposition": "start", "xanchor": "left", "yanchor": "bottom"}
    dashed = {**shade, "type": "line", "line": {"width": 1, "dash": "dash", "color": "@soft"}}
    for end in sorted(one for one in ends if one < training.end):
        yield {**dashed, "x0": end, "x1": end, "label": {**_label("would stop"), **beside}}
    if training.stopped is not None:
        end = max(training.end, training.stopped)
        yield {**shade, "x0": training.stopped, "x1": 1.06 * end, "label": _label("stopped")}


def _label(text: str) -> dict[str, Any]:
    font = {"size": 11, "color": "@soft"}
    return {"text": plain(text, 40), "textangle": 90, "textposition": "middle center", "font": font}


def _steps(trainings: Sequence[TrainingReport]) -> dict[str, Any]:
    end = max((training.end for training in trainings), default=0)
    title = {"text": "step", "standoff": 4, "font": {"size": 11}}
    return {**_AXIS, "range": [0, 1.06 * end or 1], "tickformat": ",d", "title": title}


def course_in_words(name: str, curve: Curve) -> str:
    """Say where a curve begins and ends, and between which values it lies."""
    numbers = [value for value in curve.values if math.isfinite(value)]
    if not numbers:
        return f"{name} has no numbers"
    return f"{name} from {numbers[0]:.4g} to {numbers[-1]:.4g}, between {min(numbers):.4g} and {max(numbers):.4g}"


def _number(value: float) -> float | None:
    return float(f"{value:.7g}") if math.isfinite(value) else None


def _broken(text: str, width: int = 70) -> str:
    """Return a text in lines, as plotly does not wrap it."""
    lines = [""]
    for word in shown(text)[:400].split(" "):
        if lines[-1] and len(lines[-1]) + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "<br>".join(html.escape(line[: 2 * width], quote=False) for line in lines)

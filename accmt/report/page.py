"""The page of a report: HTML made by jinja2 and plotly, complete in itself. Imports both, so only what writes one
imports this module.

Whatever comes from a training is text to it: jinja2 escapes it, control characters are made visible, and the policy of
the page lets the browser run its own two scripts only, by their hashes.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from accmt import __version__
from accmt.report.charts import charts_of, thinned, timeline
from accmt.report.training import RuleCard, TrainingReport, brief, duration, moment
from accmt.rules import Decision, Outcome
from accmt.rules.errors import numbered
from accmt.rules.printable import shown

MOST_ROWS = 3000
_MOST_EVENTS = 300
_LONGEST = 2000  # characters of a text
_FACTS = ("time", "command", "host", "devices", "processes")


@dataclass(frozen=True, slots=True)
class _Decisions:
    """Rows of the table of decisions, and the number of those left out."""

    rows: tuple[tuple[str, ...], ...]
    verdicts: tuple[str, ...]
    left_out: int


@dataclass(frozen=True, slots=True)
class _Runs:
    """Table of several runs."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    differing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Spark:
    """A small picture of an objective: paths of its course and of the saves, and its words."""

    course: str
    saves: str
    words: str


def render(trainings: Sequence[TrainingReport]) -> str:
    """Return the page for one or several trainings."""
    one = trainings[0] if len(trainings) == 1 else None
    packed, digest = _plotly()
    style, script = _part("page.css"), _part("page.js")
    events = [] if one is None else [event for event in one.events if event.kind != "evaluation"]
    runs = None if one else _runs(trainings)
    return (
        _environment()
        .get_template("page.html")
        .render(
            policy=_policy(_digest(script), digest),
            title=one.name if one else numbered(len(trainings), "training"),
            one=one,
            trainings=trainings,
            runs=runs,
            charts=list(charts_of(trainings)),
            timeline=timeline(one) if one else None,
            events=events,
            shown_events=events[-_MOST_EVENTS:],
            decisions=_decisions(one.decisions) if one else None,
            version=__version__,
            now=time.time(),
            style=Markup(style),
            script=Markup(script),
            plotly=Markup(packed),
        )
    )


def framed(page: str, height: int = 900) -> str:
    """Return a page as a notebook shows it: in a frame of its own, which cannot touch the notebook."""
    style = f"width: 100%; height: {height}px; border: 0"
    return f'<iframe sandbox="allow-scripts" title="Report" style="{style}" srcdoc="{html.escape(page)}"></iframe>'


@cache
def _plotly() -> tuple[str, str]:
    """Return the library, compressed, as text; and the digest of its source, which the page decompresses."""
    source = get_plotlyjs()
    return base64.b64encode(gzip.compress(source.encode(), 9, mtime=0)).decode(), _digest(source)


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _policy(*digests: str) -> str:
    scripts = " ".join(f"'sha256-{digest}'" for digest in digests)
    rest = "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {scripts}; {rest}"


@cache
def _part(name: str) -> str:
    loader = _environment().loader
    assert loader is not None
    return loader.get_source(_environment(), name)[0]


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("accmt.report"),
        autoescape=True,
        finalize=_written,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.filters |= {
        "brief": lambda text: brief(text, 200),
        "number": lambda value: f"{value:.6g}",
        "counted": lambda count, noun: numbered(count, noun, ","),
        "thousands": lambda count: f"{count:,}",
        "moment": moment,
        "duration": duration,
        "clock": _clock,
        "value": lambda value: value if isinstance(value, str) else json.dumps(value),
        "facts": _facts,
        "sparks": _sparks,
    }
    return environment


def _written(value: Any) -> Any:
    """Return what a template writes: a text without control characters, and cut if it is very long."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return shown(value if len(value) <= _LONGEST else f"{value[:_LONGEST]}… ({len(value):,} characters)")


def _clock(seconds: float | None) -> str:
    if seconds is None or not 0 <= seconds < 1e11:
        return ""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _facts(start: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what is known of a start, in the order in which people ask."""
    for name in _FACTS:
        value = start.get(name)
        if value is not None:
            yield name, ", ".join(dict.fromkeys(map(str, value))) if isinstance(value, list) else str(value)
    git, versions, changes = start.get("git"), start.get("versions"), start.get("changes")
    if isinstance(git, Mapping):
        yield "commit", f"{git.get('commit')}{', with changes since' if git.get('dirty') else ''}"
    if isinstance(versions, Mapping):
        yield "versions", ", ".join(f"{name} {value}" for name, value in versions.items() if value is not None)
    for change in changes if isinstance(changes, list) else ():
        yield "changed", str(change)


def _sparks(card: RuleCard) -> Iterator[_Spark]:
    """Yield a picture for each objective, in a box of 300 by 44."""
    for index, objective in enumerate(card.objectives):
        verdicts = [verdict for _, verdict in card.verdicts if index < len(verdict.values)]
        places, values = thinned(range(len(verdicts)), [verdict.values[index] for verdict in verdicts], 300)
        numbers = [value for value in values if math.isfinite(value)]
        if len(numbers) < 2:
            continue
        low, high, last = min(numbers), max(numbers), max(1, len(verdicts) - 1)
        scale = 36 / ((high / 2 - low / 2) or 1) / 2  # halves, because a difference may overflow

        def at(place: int, value: float, low: float = low, last: int = last, scale: float = scale) -> str:
            return f"{4 + 292 * place / last:.1f} {40 - (value / 2 - low / 2) * scale * 2:.1f}"

        points = [(place, value) for place, value in zip(places, values, strict=True) if math.isfinite(value)]
        saves = [at(place, value) for place, value in points if verdicts[place].outcome is Outcome.SAVED]
        count = numbered(len(verdicts), "evaluation", ",")
        words = f"{objective.name} at {count}: from {numbers[0]:.4g} to {numbers[-1]:.4g}"
        course = "M" + "L".join(at(place, value) for place, value in points)
        yield _Spark(course, "".join(f"M{place}h0" for place in saves), f"{words}, between {low:.4g} and {high:.4g}")


def _decisions(decisions: Sequence[Decision]) -> _Decisions:
    """Return the rows of the table; of too many, those that say more than `not better`, and the last."""
    rows = []
    for decision in decisions:
        place = decision.progress.evaluation, decision.progress.step, decision.progress.epoch
        for verdict in decision.verdicts:
            values = ", ".join(f"{value:.6g}" for value in verdict.values)
            rows.append((*map(str, place), verdict.rule, verdict.outcome.value, values, verdict.reason))
        if decision.stop is not None:
            rows.append((*map(str, place), decision.stop.asked_by, "stop", "", decision.stop.reason))
    telling = [number for number, row in enumerate(rows) if row[4] != Outcome.NOT_BETTER.value][-MOST_ROWS:]
    rest = [number for number, row in enumerate(rows) if row[4] == Outcome.NOT_BETTER.value]
    chosen = sorted([*telling, *rest[len(rest) - min(len(rest), MOST_ROWS - len(telling)) :]])
    verdicts = tuple(dict.fromkeys(row[4] for row in rows))
    return _Decisions(tuple(rows[number] for number in chosen), verdicts, len(rows) - len(chosen))


def _runs(trainings: Sequence[TrainingReport]) -> _Runs:
    """Return the table of runs: the settings that differ, then the best of each rule and when it was reached."""
    names = dict.fromkeys(name for training in trainings for name in training.settings if name != "model_path")
    texts = {name: [_setting(training, name) for training in trainings] for name in names}
    differing = tuple(name for name, values in texts.items() if len(set(values)) > 1)
    rules = tuple(dict.fromkeys(card.name for training in trainings for card in training.cards))
    lasts = () if rules else tuple(dict.fromkeys(curve.metric for training in trainings for curve in training.curves))
    reached = [text for rule in rules for text in (rule, f"{rule}: reached")]
    columns = ("run", *differing, *reached, *(f"last {name}" for name in lasts), "steps", "end")
    rows = []
    for number, training in enumerate(trainings):
        cells = [training.name, *(texts[name][number] for name in differing)]
        cards = {card.name: card for card in training.cards}
        for rule in rules:
            cells += _reached(cards.get(rule))
        for name in lasts:
            cells.append(next((f"{c.values[-1]:.6g}" for c in training.curves if c.metric == name and c.values), ""))
        rows.append((*cells, str(training.end), training.outcome))
    return _Runs(columns, tuple(rows), differing)


def _setting(training: TrainingReport, name: str) -> str:
    value = training.settings.get(name)
    return value if isinstance(value, str) else json.dumps(value)


def _reached(card: RuleCard | None) -> tuple[str, str]:
    if card is None or card.best is None:
        return "", ""
    after = f", after {duration(card.best.elapsed)}" if card.best.elapsed else ""
    return ", ".join(f"{value:.6g}" for value in card.values), f"step {card.best.step}{after}"

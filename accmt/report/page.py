"""The page of a report: HTML made by jinja2 and plotly, complete in itself. Imports both, so only what writes one
imports this module.

Whatever comes from a training is text to it: jinja2 escapes it, control characters are made visible, and the policy of
the page lets the browser run its own two scripts only, by their hashes.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from accmt import __version__
from accmt.report.band import differ_by_seed
from accmt.report.charts import charts_of, course_in_words, in_order, thinned, timeline
from accmt.report.training import Curve, RuleCard, TrainingReport, brief, duration, when
from accmt.rules import Decision, Outcome
from accmt.rules.errors import numbered
from accmt.rules.printable import shown

MOST_ROWS = 3000
_POLICY = "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
_MOST_EVENTS = 300
_MOST_POINTS = 150  # of a course in a card
_LONGEST = 2000  # characters of a text
_NAMES = ("model_path", "track_name", "run_name")  # settings that say which run it is
_FACTS = ("time", "command", "host", "devices", "processes")


def render(trainings: Sequence[TrainingReport]) -> str:
    """Return the page for one or several trainings."""
    one = trainings[0] if len(trainings) == 1 else None
    packed, digest = _plotly()
    style, script = _part("page.css"), _part("page.js")
    parts: dict[str, Any] = {"one": one, "trainings": trainings, "charts": list(charts_of(trainings))}
    if one is None:
        parts |= {"title": f"{len(trainings)} trainings", "banded": differ_by_seed(trainings), **_runs(trainings)}
    else:
        parts |= {"title": one.name, "timeline": timeline(one), **_decisions(one.decisions)}
        parts["events"] = [event for event in in_order(one.events) if event.kind != "evaluation"]
        parts["shown_events"] = parts["events"][-_MOST_EVENTS:]
    parts |= {"style": Markup(style), "script": Markup(script), "plotly": Markup(packed)}
    scripts = f"script-src 'sha256-{_digest(script)}' 'sha256-{digest}'"
    parts |= {"policy": f"default-src 'none'; {scripts}; {_POLICY}", "version": __version__, "now": time.time()}
    return _environment().get_template("page.html").render(parts)


@cache
def _plotly() -> tuple[str, str]:
    """Return the library, compressed, as text; and the digest of its source, which the page decompresses."""
    source = get_plotlyjs()
    return base64.b64encode(gzip.compress(source.encode(), 9, mtime=0)).decode(), _digest(source)


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _part(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, finalize=_written, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.filters |= {"when": when, "duration": duration, "clock": _clock, "facts": _facts, "sparks": _sparks}
    environment.filters |= {"brief": partial(brief, most=200), "counted": partial(numbered, form=",")}
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


def _sparks(card: RuleCard) -> Iterator[tuple[Markup, Markup, str, str]]:
    """Yield for each objective the paths of its course and of the saves, in a box of 300 by 44, its name and range, and
    words for who does not see it."""
    for index, objective in enumerate(card.objectives):
        verdicts = [verdict for _, verdict in card.verdicts if index < len(verdict.values)]
        curve = Curve(objective.name, "", tuple(range(len(verdicts))), tuple(one.values[index] for one in verdicts))
        kept = zip(*thinned(curve.steps, curve.values, _MOST_POINTS), strict=True)
        points = [(x, y / 2) for x, y in kept if math.isfinite(y)]  # halves: a difference may overflow
        if len(points) > 1:
            low, high = min(y for _, y in points), max(y for _, y in points)
            across, up = 292 / (len(verdicts) - 1), 36 / ((high - low) or 1)
            drawn = {x: f"{4 + x * across:.1f} {40 - (y - low) * up:.1f}" for x, y in points}
            saves = [place for x, place in drawn.items() if verdicts[x].outcome is Outcome.SAVED]
            words = course_in_words(f"{objective.name} at {numbered(len(verdicts), 'evaluation', ',')}", curve)
            # Marked as safe, so that they are not cut like a text of somebody.
            label = f"{objective.name}: {2 * low:.4g} to {2 * high:.4g}"
            course, dots = "M" + "L".join(drawn.values()), "".join(f"M{place}h0" for place in saves)
            yield Markup(course), Markup(dots), label, words


def _decisions(decisions: Sequence[Decision]) -> dict[str, Any]:
    """Return the rows of the table. If there are too many, those other than `not better` and the last ones are kept."""
    rows = []
    for decision in decisions:
        place = decision.progress.evaluation, decision.progress.step, decision.progress.epoch
        for verdict in decision.all_verdicts:
            values = ", ".join(f"{value:.6g}" for value in verdict.values)
            rows.append((*map(str, place), verdict.rule, verdict.outcome.value, values, verdict.reason))
        if decision.stop is not None:
            rows.append((*map(str, place), decision.stop.asked_by, "stop", "", decision.stop.reason))
    telling = [number for number, row in enumerate(rows) if row[4] != Outcome.NOT_BETTER.value][-MOST_ROWS:]
    rest = [number for number, row in enumerate(rows) if row[4] == Outcome.NOT_BETTER.value]
    chosen = sorted([*telling, *rest[len(rest) - min(len(rest), MOST_ROWS - len(telling)) :]])
    verdicts = dict.fromkeys(row[4] for row in rows)
    return {"rows": [rows[number] for number in chosen], "whole": len(rows), "verdicts": list(verdicts)}


def _runs(trainings: Sequence[TrainingReport]) -> dict[str, Any]:
    """Return the table of runs: the settings that differ, then the best of each rule and when it was reached."""
    names = dict.fromkeys(name for training in trainings for name in training.settings if name not in _NAMES)
    differing = [name for name in names if len({training.settings.get(name) for training in trainings}) > 1]
    rules = list(dict.fromkeys(card.name for training in trainings for card in training.cards))
    lasts = [] if rules else list(dict.fromkeys(curve.metric for training in trainings for curve in training.curves))
    measured = {(card.name, name): None for training in trainings for card in training.cards for name in card.held_out}
    reached = [text for rule in rules for text in (rule, f"{rule}: reached")]
    rows = []
    for training in trainings:
        cards = {card.name: card for card in training.cards}
        last = {curve.metric: f"{curve.values[-1]:.6g}" for curve in training.curves if curve.values}
        cells = [training.name, *(training.settings.get(name, "") for name in differing)]
        cells += [text for rule in rules for text in _reached(cards.get(rule))]
        cells += [_held_out(cards.get(rule), name) for rule, name in measured]
        rows.append([*cells, *(last.get(name, "") for name in lasts), str(training.end), training.outcome])
    reached += [f"{rule}: {name}, held out" for rule, name in measured]
    columns = ["show", "run", *differing, *reached, *(f"last {name}" for name in lasts), "steps", "end"]
    return {"columns": columns, "rows": rows, "differing": differing}


def _held_out(card: RuleCard | None, name: str) -> str:
    return f"{card.held_out[name]:.6g}" if card is not None and name in card.held_out else ""


def _reached(card: RuleCard | None) -> tuple[str, str]:
    if card is None or card.best is None:
        return "", ""
    after = f", after {duration(card.best.elapsed)}" if card.best.elapsed else ""
    return ", ".join(f"{value:.6g}" for value in card.values), f"step {card.best.step}{after}"

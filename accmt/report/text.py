"""A report in a few lines of text, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from accmt.display.lines import aligned, sparkline, together, wrapped
from accmt.report.training import RuleCard, TrainingReport, brief

_MOST_CURVES = 12
_LONGEST = 60


def summary(training: TrainingReport, width: int | None, *, ascii_only: bool = False) -> Iterator[str]:
    """Yield lines for one screen: the outcome, each rule with its course, what other rules would have changed, and the
    curves. `width` is that of the terminal; None for a pipe, where nothing is wrapped."""
    yield from (wrapped(brief(line, 400), width) for line in (training.name, training.about, f"{training.outcome}."))
    rules = []
    for card in training.cards:
        held_out = ", ".join(f"{brief(name, _LONGEST)} {value:.6g}" for name, value in card.held_out.items())
        best = ", ".join(_courses(card, ascii_only=ascii_only)) + f" (held out: {held_out})" * bool(held_out)
        rules.append([brief(card.name, _LONGEST), best, card.folder])
    curves = []
    for curve in training.curves:
        name = brief(f"{curve.metric}@{curve.dataset}" if curve.dataset else curve.metric, _LONGEST)
        course = sparkline(curve.values, ascii_only=ascii_only)
        curves.append([name, course, together(f"last {curve.values[-1]:.6g}")])
    effects = [wrapped(f"{brief(card.name, _LONGEST)}: {card.effect}", width) for card in training.cards if card.effect]
    for lines in (aligned(rules, width), effects, aligned(curves[:_MOST_CURVES], width)):
        yield from ["", *lines] if lines else ()
    if len(curves) > _MOST_CURVES:
        yield f"and {len(curves) - _MOST_CURVES} more, which the page shows"


def _courses(card: RuleCard, *, ascii_only: bool) -> Iterator[str]:
    """Yield each objective with its best value, if a model was saved, and its course."""
    if not card.values:
        yield brief(card.best_in_words, _LONGEST)
    for index, objective in enumerate(card.objectives):
        values = [verdict.values[index] for _, verdict in card.verdicts if index < len(verdict.values)]
        best = f" {card.values[index]:.6g}" if index < len(card.values) else ""
        course = sparkline(values, ascii_only=ascii_only).strip()
        if best or course:
            yield together(f"{brief(objective.name, _LONGEST)}{best} {course}".rstrip())

"""A report in a few lines of text, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from accmt.display.lines import aligned, sparkline, together, wrapped
from accmt.report.training import TrainingReport, brief

_MOST_CURVES = 12
_LONGEST = 60


def summary(training: TrainingReport, width: int | None, *, ascii_only: bool = False) -> Iterator[str]:
    """Yield lines for one screen: the outcome, each rule with its course, what other rules would have changed, and the
    curves. `width` is that of the terminal; None for a pipe, where nothing is wrapped."""
    yield from (wrapped(brief(line, 400), width) for line in (training.name, training.about, f"{training.outcome}."))
    rules = []
    for card in training.cards:
        values = [verdict.values[0] for _, verdict in card.verdicts if verdict.values]
        name, best = brief(card.name, _LONGEST), together(brief(card.best_in_words, _LONGEST))
        held_out = ", ".join(f"{brief(name, _LONGEST)} {value:.6g}" for name, value in card.held_out.items())
        best += f" (held out: {held_out})" * bool(held_out)
        rules.append([name, best, sparkline(values, ascii_only=ascii_only), card.folder])
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

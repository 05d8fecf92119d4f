"""A report in a few lines of text, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from accmt.display.lines import aligned, sparkline, together, wrapped
from accmt.report.training import TrainingReport, brief
from accmt.rules import Progress, Verdict

_MOST_CURVES = 12
_LONGEST = 60


def summary(training: TrainingReport, width: int | None, *, ascii_only: bool = False) -> Iterator[str]:
    """Yield lines for one screen: the outcome, each rule with its course, and the curves of the metrics.

    Args:
        training: What to report.
        width: The width of the terminal; None for a pipe, where nothing is wrapped.
        ascii_only: Draw with ASCII characters.
    """
    yield from (wrapped(brief(line, 400), width) for line in (training.name, training.about, f"{training.outcome}."))
    rules = [
        [brief(card.name, _LONGEST), together(brief(card.best_in_words, _LONGEST)), course, card.folder]
        for card in training.cards
        for course in [sparkline(_first(card.verdicts), ascii_only=ascii_only)]
    ]
    curves = [
        [
            brief(f"{curve.metric}@{curve.dataset}" if curve.dataset else curve.metric, _LONGEST),
            sparkline(curve.values, ascii_only=ascii_only),
            together(f"last {curve.values[-1]:.6g}"),
        ]
        for curve in training.curves
    ]
    for rows in (rules, curves[:_MOST_CURVES]):
        yield ""
        yield from aligned(rows, width) if rows else ()
    if len(curves) > _MOST_CURVES:
        yield f"and {len(curves) - _MOST_CURVES} more, which the page shows"


def _first(verdicts: Sequence[tuple[Progress, Verdict]]) -> list[float]:
    return [verdict.values[0] for _, verdict in verdicts if verdict.values]

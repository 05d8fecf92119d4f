"""`accmt explain`: show what a training decided, and why."""

from __future__ import annotations

import argparse
from pathlib import Path

from accmt.cli.arguments import CommandError
from accmt.cli.output import write
from accmt.cli.replay.training import read_decisions
from accmt.cli.report import moment, stop_of, summaries, write_table
from accmt.config.errors import did_you_mean
from accmt.rules import Decision, canonical_name
from accmt.rules.printable import plain


def run(options: argparse.Namespace) -> int:
    """Print the decisions of a training.

    Raises:
        CommandError: If there is no training, or no such rule.
    """
    folder = Path(options.model_path)
    decisions = read_decisions(folder)
    if not decisions:
        write(f"{folder}: nothing was decided yet")
        return 0
    rule = _rule(options.rule, decisions)
    write_table(decisions, rule)
    stop = stop_of(decisions)
    why = (
        "no rule asked to stop" if stop is None or stop.stop is None else f"stopped {moment(stop)}: {stop.stop.reason}"
    )
    for line in ("", *summaries(decisions, "saved", rule), why):
        write(plain(line))
    return 0


def _rule(name: str | None, decisions: tuple[Decision, ...]) -> str | None:
    """Return the name of the requested rule."""
    names = list(dict.fromkeys(verdict.rule for decision in decisions for verdict in decision.verdicts))
    if name is None or name in names:
        return name
    if canonical_name(name) in names:
        return canonical_name(name)
    known = plain(", ".join(names))
    raise CommandError(f"there is no rule '{name}'{plain(did_you_mean(name, names))} There are: {known}")

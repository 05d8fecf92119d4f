"""`accmt explain`: show what a training decided, and why."""

from __future__ import annotations

import argparse
from pathlib import Path

from accmt.cli.arguments import CommandError, path
from accmt.cli.output import write, write_rich
from accmt.cli.replay.training import read_decisions
from accmt.cli.report import decisions_table, moment, summaries
from accmt.config.errors import did_you_mean
from accmt.rules import Decision, canonical_name
from accmt.rules.printable import escaped
from accmt.tracking.history import stop_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Complete the parser of the command."""
    parser.description = (
        "Show the decisions of a training: when each rule saved a model, why it did not at the other evaluations, and\n"
        "why the training stopped."
    )
    parser.epilog = """examples:
  accmt explain runs/model
  accmt explain runs/model --rule accuracy@dev
"""
    parser.add_argument("model_path", type=path, metavar="MODEL_PATH", help="the model_path of the training")
    parser.add_argument("--rule", metavar="NAME", help="show only this rule")


def run(options: argparse.Namespace) -> int:
    """Print the decisions of a training.

    Raises:
        CommandError: If there is no training, or no such rule.
    """
    folder = Path(options.model_path)
    decisions = read_decisions(folder)
    if not decisions:
        write(f"{folder}: no decisions yet")
        return 0
    rule = _rule(options.rule, decisions)
    stop = stop_of(decisions)
    why = (
        "no rule asked to stop" if stop is None or stop.stop is None else f"stopped {moment(stop)}: {stop.stop.reason}"
    )
    write_rich(decisions_table(decisions, rule), "", *summaries(decisions, "saved", rule), why)
    return 0


def _rule(name: str | None, decisions: tuple[Decision, ...]) -> str | None:
    """Return the name of the requested rule."""
    names = list(dict.fromkeys(verdict.rule for decision in decisions for verdict in decision.verdicts))
    if name is None or name in names:
        return name
    if canonical_name(name) in names:
        return canonical_name(name)
    known = escaped(", ".join(names))
    raise CommandError(f"there is no rule '{name}'{escaped(did_you_mean(name, names))} The rules are: {known}")

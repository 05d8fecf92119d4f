"""`accmt explain`: show what a training decided, and why."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from accmt.cli.arguments import CommandError, path, positive
from accmt.cli.decisions import COLUMNS, rows_of, write_decisions
from accmt.cli.output import print_csv, print_json, write
from accmt.cli.replay.training import read_decisions
from accmt.cli.summaries import held_out_summaries, moment, summaries
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
  accmt explain runs/model --rule accuracy@dev --last 5
  accmt explain runs/model --csv > decisions.csv
"""
    parser.add_argument("model_path", type=path, metavar="MODEL_PATH", help="the model_path of the training")
    parser.add_argument("--rule", metavar="NAME", help="show only this rule")
    parser.add_argument("--last", type=positive, metavar="N", help="show only the decisions of the last N evaluations")
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="write one decision per line, as JSON")
    forms.add_argument("--csv", action="store_true", help="write one verdict per line, as CSV")


def run(options: argparse.Namespace) -> int:
    """Print the decisions of a training.

    Raises:
        CommandError: If there is no training, or no such rule.
    """
    folder = Path(options.model_path)
    decisions = read_decisions(folder)
    rules = list(dict.fromkeys(verdict.rule for decision in decisions for verdict in decision.verdicts))
    rule = _rule(options.rule, rules) if decisions else None
    listed = _listed(decisions, rule, options.last)
    if options.json:
        for decision in listed:
            print_json(decision.to_json())
    elif options.csv:
        print_csv([COLUMNS, *(row for decision in listed for row in rows_of(decision))])
    elif not decisions:
        write(f"{folder}: no decisions yet")
    else:
        stop = stop_of(decisions)
        reason = None if stop is None or stop.stop is None else f"stopped {moment(stop)}: {stop.stop.reason}"
        why = reason or "no rule asked to stop"
        held_out = held_out_summaries(folder, rules if rule is None else [rule])
        write_decisions(listed, rule, [*summaries(decisions, "saved", rule), *held_out, why])
    return 0


def _listed(decisions: Sequence[Decision], rule: str | None, last: int | None) -> list[Decision]:
    """Return the decisions of the last evaluations, with the verdicts of one rule."""
    first = decisions[-1].progress.evaluation - last if decisions and last is not None else -1
    chosen = [decision for decision in decisions if decision.progress.evaluation > first]
    kept = [_of_rule(decision, rule) for decision in chosen]
    return [decision for decision in kept if decision.all_verdicts or decision.stop]


def _of_rule(decision: Decision, rule: str | None) -> Decision:
    """Return a decision with the verdicts of one rule only; None for all."""
    verdicts, average = tuple(v for v in decision.verdicts if rule in (None, v.rule)), decision.average
    is_asked = average is not None and rule in (None, average.rule)
    return replace(decision, verdicts=verdicts, average=average if is_asked else None)


def _rule(name: str | None, names: Sequence[str]) -> str | None:
    """Return the name of the requested rule."""
    if name is None or name in names:
        return name
    if canonical_name(name) in names:
        return canonical_name(name)
    known = escaped(", ".join(names))
    raise CommandError(f"there is no rule '{name}'{escaped(did_you_mean(name, names))} The rules are: {known}")

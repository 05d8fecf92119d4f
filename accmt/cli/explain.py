"""`accmt explain`: show what a training decided, and why."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from accmt.cli.arguments import CommandError, path, positive
from accmt.cli.output import print_csv, print_json, write, write_rich
from accmt.cli.replay.training import read_decisions
from accmt.cli.report import decisions_table, moment, stop_of, summaries
from accmt.config.errors import did_you_mean
from accmt.rules import Decision, canonical_name
from accmt.rules.printable import escaped

_COLUMNS = ("evaluation", "step", "epoch", "rule", "values", "verdict", "why")


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
    if not decisions and not (options.json or options.csv):
        write(f"{folder}: no decisions yet")
        return 0
    rule = _rule(options.rule, decisions) if decisions else None
    listed = _last(decisions, options.last)
    if options.json:
        for decision in listed:
            if kept := _of_rule(decision, rule):
                print_json(kept.to_json())
        return 0
    if options.csv:
        print_csv([_COLUMNS, *(row for decision in listed for row in _rows(decision, rule))])
        return 0
    stop = stop_of(decisions)
    why = (
        "no rule asked to stop" if stop is None or stop.stop is None else f"stopped {moment(stop)}: {stop.stop.reason}"
    )
    write_rich(decisions_table(listed, rule), "", *summaries(decisions, "saved", rule), why)
    return 0


def _last(decisions: tuple[Decision, ...], number: int | None) -> tuple[Decision, ...]:
    """Return the decisions since the evaluation from which there are that many, or all of them."""
    if number is None or not decisions:
        return decisions
    first = decisions[-1].progress.evaluation - number
    return tuple(decision for decision in decisions if decision.progress.evaluation > first)


def _of_rule(decision: Decision, rule: str | None) -> Decision | None:
    """Return a decision with the verdict of one rule only; None if nothing is left of it."""
    verdicts = tuple(verdict for verdict in decision.verdicts if rule in (None, verdict.rule))
    return replace(decision, verdicts=verdicts) if verdicts or decision.stop else None


def _rows(decision: Decision, rule: str | None) -> Iterator[tuple[object, ...]]:
    progress = decision.progress
    place = (progress.evaluation, progress.step, progress.epoch)
    for verdict in decision.verdicts:
        if rule in (None, verdict.rule):
            yield *place, verdict.rule, " ".join(map(str, verdict.values)), verdict.outcome.value, verdict.reason
    if decision.stop is not None:
        yield *place, "", "", "stop", decision.stop.reason


def _rule(name: str | None, decisions: tuple[Decision, ...]) -> str | None:
    """Return the name of the requested rule."""
    names = list(dict.fromkeys(verdict.rule for decision in decisions for verdict in decision.verdicts))
    if name is None or name in names:
        return name
    if canonical_name(name) in names:
        return canonical_name(name)
    known = escaped(", ".join(names))
    raise CommandError(f"there is no rule '{name}'{escaped(did_you_mean(name, names))} The rules are: {known}")

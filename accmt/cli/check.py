"""`accmt check`: check rules against what a training reports, and describe them in words."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from accmt.cli.arguments import UsageError, add_metric_options, add_rule_options
from accmt.cli.output import complain, write
from accmt.cli.replay.rules import Mistakes, given_facts, given_rules, parsed, with_patience
from accmt.rules import CadenceRule, Facts, Length, RuleError, Rules, check
from accmt.rules.checker import clashes, naming_held_out
from accmt.rules.describe import cadence_in_words, in_words, stop_in_words
from accmt.rules.nodes import RESERVED

_FILES = (".yaml", ".yml")
_JOINING = {*RESERVED, *"/+-*,<>", "<=", ">=", "==", "!="}  # what no rule is alone
# The length of the training is unknown here: assume one so long that no rule starts too late.
_ENDLESS = Length(total_steps=10**18, steps_per_epoch=10**6)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Complete the parser of the command."""
    parser.description = (
        "Check rules, and describe in words what each of them does. All mistakes are reported at once, with their\n"
        "positions, and the exit status is then 1. If you give the metrics of the training, the names, datasets and\n"
        "directions in the rules are checked as well."
    )
    parser.epilog = """examples:
  accmt check "best_accuracy@dev/f1@ood keep 3"
  accmt check "best_accuracy@dev" --metric accuracy:max --dataset dev --dataset test
  accmt check --config hps.yaml --stop-when "elapsed > 2 hours"
"""
    parser.add_argument("rules", nargs="*", metavar="RULE", help="a saving rule, such as best_valid_loss")
    add_rule_options(parser)
    parser.add_argument("--checkpoint-every", metavar="CADENCE", help='how often to checkpoint, such as "500 steps"')
    parser.add_argument("--evaluate-every", metavar="CADENCE", help='how often to evaluate, such as "1 epoch"')
    add_metric_options(
        parser,
        about_metrics="a metric of the training, whether higher (max) or lower (min) is better, and its datasets if it "
        "is not reported on all of them; losses need not be given",
        about_datasets="a validation dataset; by default those that the metrics name, or else a single one with the "
        "key 0; may be repeated",
    )


def run(options: argparse.Namespace) -> int:
    """Check the given rules and describe them in words.

    Raises:
        UsageError: If there is nothing to check, or the metrics contradict each other.
        CommandError: With all mistakes.
    """
    cadences = options.checkpoint_every, options.evaluate_every
    if not any([options.rules, options.config, options.stop_when, *cadences]):
        raise UsageError("there is nothing to check: give a RULE or --config")
    if file := next((rule for rule in options.rules if "@" not in rule and Path(rule).suffix in _FILES), None):
        raise UsageError(f"'{file}' is the name of a file, not a rule: give it as --config {file}")
    if len(options.rules) > 1 and _JOINING.intersection(options.rules):
        raise UsageError(f'a rule of several words is one argument: "{" ".join(options.rules)}"')
    if options.datasets and not options.metrics:
        raise UsageError("--dataset needs the metrics as well: give each one with --metric")
    facts = given_facts(options.metrics, options.datasets, _ENDLESS) if options.metrics else None
    mistakes = Mistakes()
    rules, held_out = _rules(options, mistakes)
    if facts is None:
        mistakes.of(lambda: _check_names(rules, held_out))
    else:
        for warning in mistakes.of(lambda: check(rules, facts.holding_out(held_out))) or []:
            complain(f"warning: {warning}")
    mistakes.tell()
    for line in _in_words(rules, facts):
        write(line)
    return 0


def _rules(options: argparse.Namespace, mistakes: Mistakes) -> tuple[Rules, tuple[str, ...]]:
    """Return the rules of the file and the arguments that can be parsed, and the held-out datasets."""
    section = given_rules(options, mistakes, whole=True)
    rules = Rules(section.savings, section.stop_when, section.evaluate, section.checkpoint)
    evaluate = parsed(partial(CadenceRule.parse, evaluates=True), filter(None, [options.evaluate_every]), mistakes)
    checkpoint = parsed(CadenceRule.parse, filter(None, [options.checkpoint_every]), mistakes)
    rules = replace(rules, evaluate=[*evaluate, rules.evaluate][0], checkpoint=[*checkpoint, rules.checkpoint][0])
    return with_patience(rules, options.patience), section.held_out


def _check_names(rules: Rules, held_out: Sequence[str]) -> None:
    """Check for rules that conflict with each other or name held-out datasets, which needs no facts about the
    training."""
    if problems := [*clashes(rules.savings), *naming_held_out(rules, held_out)]:
        raise RuleError(problems)


def _in_words(rules: Rules, facts: Facts | None) -> list[str]:
    lines = [f"{rule.name}: {in_words(rule, facts)}" for rule in rules.savings]
    lines += [f"stop_when: {stop_in_words(stop)}" for stop in rules.stop_when]
    for name, verb, rule in (
        ("checkpoint", "checkpoints", rules.checkpoint),
        ("evaluate", "evaluates", rules.evaluate),
    ):
        if rule is not None:
            lines.append(f"{name}_every: {verb} {cadence_in_words(rule.cadence)}")
    return lines

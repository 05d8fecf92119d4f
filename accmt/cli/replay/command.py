"""`accmt replay`: show what other rules would have decided in a training."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

from accmt.cli.arguments import add_metric_options, add_rule_options, path
from accmt.cli.decisions import write_decisions
from accmt.cli.output import complain, print_json
from accmt.cli.replay.opening import open_source
from accmt.cli.replay.rules import Mistakes, check_against, chosen_rules, given_rules
from accmt.cli.replay.source import Source
from accmt.cli.summaries import moment, summaries
from accmt.rules import Decision, Rules
from accmt.rules.decision import REQUESTED
from accmt.rules.printable import escaped
from accmt.rules.replay import asked_late, replay
from accmt.tracking.history import stop_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Complete the parser of the command."""
    parser.description = (
        "Show what other rules would have saved in a training that is over, and when it would have stopped. SOURCE is\n"
        "  the model_path of a training;\n"
        "  a CSV file with the columns step, epoch (completed epochs), dataset, elapsed (seconds, optional), and one\n"
        "  column for each metric: the rows of a step are one evaluation, and an empty dataset means 0;\n"
        "  mlflow:RUN_ID, with a --metric for each metric to be read; or\n"
        "  a log of another trainer: a trainer_state.json of transformers (or the folder of its checkpoints), a\n"
        "  metrics.csv of Lightning, or a folder with event files of TensorBoard.\n"
        "Without rules, the rules of the training decide again; --patience and --stop-when replace theirs."
    )
    parser.epilog = """examples:
  accmt replay runs/model --patience 3
  accmt replay runs/model --rule "best_worst(accuracy) keep 3" --stop-when "stalled(valid_loss, 2)"
  accmt replay scores.csv --rule best_accuracy@dev --metric accuracy:max
  accmt replay mlflow:0123abcd --tracking-uri logs --rule best_f1 --metric f1:max --dataset dev
  accmt replay runs/model --json | diff - runs/model/decisions.jsonl
"""
    parser.add_argument("source", type=path, metavar="SOURCE", help="a model_path, a CSV file, mlflow:RUN_ID or a log")
    parser.add_argument(
        "--rule", dest="rules", action="append", default=[], metavar="RULE", help="a saving rule; may be repeated"
    )
    add_rule_options(parser)
    parser.add_argument("--json", action="store_true", help="write one decision per line, as JSON")
    add_metric_options(
        parser,
        about_metrics="a metric, and whether higher (max) or lower (min) is better where SOURCE does not say so; "
        "losses need not be given",
        about_datasets="for mlflow and logs: a dataset that the names of metrics end with, such as dev in "
        "accuracy_dev; may be repeated",
    )
    parser.add_argument(
        "--tracking-uri", type=path, metavar="URI", help="only for mlflow: the logging_dir of the training, or a URL"
    )


def run(options: argparse.Namespace) -> int:
    """Replay the decisions and print them.

    Raises:
        CommandError: If the source cannot be read, or the rules cannot be applied to it.
        UsageError: If an option does not fit this kind of source.
    """
    mistakes = Mistakes()
    given = replace(given_rules(options, mistakes), evaluate=None, checkpoint=None)
    mistakes.tell()
    source = open_source(options.source, options.metrics, options.datasets, options.tracking_uri)
    rules = chosen_rules(given, options.patience, source)
    check_against(rules, source)
    is_own = given == Rules(()) and options.patience is None
    history = replace(source.history, failures={}) if given.savings else source.history
    if not is_own:
        history = replace(history, stops=tuple(d for d in history.stops if d.stop and d.stop.asked_by != REQUESTED))
    decisions = replay(rules, source.facts, history)
    for stop in asked_late(rules, history, source.description.rules if source.description else None):
        complain(
            escaped(
                f"note: '{stop.text}' is checked only at evaluations, because the values in between were not recorded"
            )
        )
    for change in source.description.changes if is_own and source.description is not None else ():
        complain(escaped(f"note: when the training was resumed, {change}"))
    if options.json:
        for decision in decisions:
            print_json(decision.to_json())
        return 0
    compared = [_compared(decisions, source.decisions)] if is_own else []
    lines = (*summaries(decisions, "would have saved"), _ending(decisions, source), *compared)
    write_decisions(decisions, None, lines)
    return 0


def _ending(decisions: Sequence[Decision], source: Source) -> str:
    stop, last = stop_of(decisions), source.history.observations[-1].progress
    if stop is None or stop.stop is None:
        return f"would not have stopped: the history ends after evaluation {last.evaluation}, at step {last.step}"
    words = f"would have stopped {moment(stop)}: {stop.stop.reason}"
    more = last.evaluation - stop.progress.evaluation
    if more > 0:
        words += f"; the training continued for {more} more evaluation{'s' * (more > 1)}, to step {last.step}"
    return words


def _compared(decisions: Sequence[Decision], taken: Sequence[Decision]) -> str:
    """Say whether the training's own rules decide as they did then."""
    for mine, its in zip(decisions, taken, strict=False):
        if mine != its:
            return f"the training decided differently {moment(its)}: its rules were changed later"
    if len(decisions) < len(taken):
        return f"the training did not stop {moment(decisions[-1])}: its rules were changed later"
    return "these are the decisions that the training made"

"""`accmt report`: write a page about trainings, which works offline."""

from __future__ import annotations

import argparse
import sys
import webbrowser
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from accmt.cli.arguments import CommandError, UsageError, add_metric_options, add_rule_options, path
from accmt.cli.output import write
from accmt.cli.replay.opening import MLFLOW, open_source, read_all
from accmt.cli.replay.rules import Mistakes, check_against, chosen_rules, given_rules, held_apart
from accmt.cli.replay.source import Source
from accmt.display.console import PlainConsole
from accmt.files.paths import resolved, shortened
from accmt.report.live import write_report
from accmt.report.text import summary
from accmt.report.training import RuleCard, TrainingReport, read_training, training_of
from accmt.report.what_if import supposed
from accmt.rules import Rules
from accmt.rules.printable import escaped
from accmt.rules.reserved_names import REPORT
from accmt.tracking.journal import HISTORY


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Complete the parser of the command."""
    parser.description = (
        "Write an HTML page about a training, which works offline: its end, what each rule saved and why, curves,\n"
        "decisions, configuration. For several trainings, it compares their settings, curves and best models.\n"
        "SOURCE is a model_path, a folder of many, mlflow:EXPERIMENT for all runs of an experiment, or a table or log\n"
        "of another trainer, as for accmt sweep. --rule, --patience and --stop-when add rules that the training did\n"
        "not have, as a replay decides."
    )
    parser.epilog = """examples:
  accmt report runs/model --open
  accmt report runs -o compared.html
  accmt report mlflow:my-experiment --tracking-uri logs
  accmt report runs/model --text
  accmt report runs/model --rule "best_accuracy@dev by 0.01" --patience 3
"""
    parser.add_argument("sources", type=path, nargs="+", metavar="SOURCE", help="trainings, or folders of trainings")
    parser.add_argument(
        "--rule", dest="rules", action="append", default=[], metavar="RULE", help="what if: a saving rule, by replay"
    )
    add_rule_options(parser)
    parser.add_argument("-o", "--output", type=path, metavar="FILE", help=f"the page to write, {REPORT} by default")
    parser.add_argument("--open", action="store_true", help="show the page in the browser")
    parser.add_argument("--text", action="store_true", help="print a summary for one screen, and write no page")
    add_metric_options(
        parser,
        about_metrics="for logs, and for rules if SOURCE does not say it: a metric, and whether higher (max) or lower "
        "(min) is better",
        about_datasets="for logs: a dataset that the names of metrics end with, such as dev in accuracy_dev",
    )
    parser.add_argument("--tracking-uri", type=path, metavar="URI", help="only for mlflow: its logging_dir, or a URL")


def run(options: argparse.Namespace) -> int:
    """Write the page, or print the summary."""
    if options.text and (options.output is not None or options.open):
        raise UsageError("--text writes no page: leave out --output and --open, or --text")
    if options.tracking_uri is not None and not any(source.startswith(MLFLOW) for source in options.sources):
        raise UsageError(f"--tracking-uri is only for {MLFLOW}EXPERIMENT")
    mistakes = Mistakes()
    section = given_rules(options, mistakes)
    mistakes.tell()
    given = Rules(section.savings, section.stop_when)
    is_supposed = given != Rules(()) or options.patience is not None
    if section.held_out and not is_supposed:
        raise UsageError("--held-out is for other rules: give --rule, --patience or --stop-when")
    if (options.metrics or options.datasets) and not is_supposed and all(map(_is_whole, options.sources)):
        raise UsageError("--metric and --dataset are for logs, tables and rules of --rule: leave them out")
    trainings = []
    for name, found in read_all(options.sources, lambda name: list(_opened(name, options))):
        for training, source in found:
            own = (
                _supposed(name, held_apart(source(), section.held_out), given, options.patience) if is_supposed else ()
            )
            trainings.append(replace(training, cards=(*training.cards, *own)))
    if options.text:
        console = PlainConsole(file=sys.stdout)
        width, ascii_only = console.width if sys.stdout.isatty() else None, console.options.ascii_only
        write("\n\n".join("\n".join(summary(training, width, ascii_only=ascii_only)) for training in trainings))
        return 0
    page = resolved(options.output or REPORT)
    try:
        write_report(trainings, page)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        why = error.strerror if isinstance(error, OSError) else None
        raise CommandError(escaped(f"{page} cannot be written: {why}" if why else error)) from None
    write(str(shortened(page)))
    if options.open and not webbrowser.open(page.as_uri()):
        raise CommandError(f"{page} was written, but no browser could be opened")
    return 0


def _is_whole(source: str) -> bool:
    """Return whether a source is the folder of a training, or an experiment, of which everything is read."""
    return source.startswith(MLFLOW) or (Path(source) / HISTORY).is_file()


def _opened(name: str, options: argparse.Namespace) -> Iterator[tuple[TrainingReport, Callable[[], Source]]]:
    """Yield the trainings of a source, each with how to read what rules need.

    Raises:
        CommandError: It cannot be read.
    """
    if name.startswith(MLFLOW):
        from accmt.cli.replay.mlflow import open_experiment  # slow: it imports pydantic

        for run, training in open_experiment(name.removeprefix(MLFLOW), options.tracking_uri):
            yield training, partial(_source, f"{MLFLOW}{run}", options)
    elif _is_whole(name):
        try:
            yield read_training(resolved(name)), partial(_source, name, options)
        except (OSError, ValueError) as error:
            raise CommandError(escaped(error)) from None
    else:
        source = _source(name, options)
        yield training_of(str(shortened(resolved(name))), source.history.observations), lambda: source


def _source(name: str, options: argparse.Namespace) -> Source:
    location = options.tracking_uri if name.startswith(MLFLOW) else None
    return open_source(name, options.metrics, options.datasets, location)


def _supposed(name: str, source: Source, given: Rules, patience: int | None) -> Iterator[RuleCard]:
    """Return the cards of rules that a training did not have.

    Raises:
        CommandError: They do not fit it.
    """
    rules = chosen_rules(given, patience, source)
    check_against(rules, source, f"in {name}:")
    return supposed(replace(rules, writes=False), source.facts, source.history)

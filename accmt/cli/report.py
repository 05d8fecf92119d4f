"""`accmt report`: write a page about trainings, which works offline."""

from __future__ import annotations

import argparse
import sys
import webbrowser
from dataclasses import replace

from accmt.cli.arguments import CommandError, UsageError, add_rule_options, path
from accmt.cli.output import write
from accmt.cli.replay.opening import MLFLOW
from accmt.cli.replay.rules import Mistakes, check_against, chosen_rules, given_rules, held_apart
from accmt.cli.replay.training import open_training
from accmt.config.rules import RuleSection
from accmt.display.console import PlainConsole
from accmt.files.paths import resolved, shortened
from accmt.report.live import write_report
from accmt.report.text import summary
from accmt.report.training import TrainingReport, read_training
from accmt.report.what_if import supposed
from accmt.rules import Rules
from accmt.rules.printable import escaped
from accmt.rules.reserved_names import REPORT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Complete the parser of the command."""
    parser.description = (
        "Write an HTML page about a training, which works offline: its end, what each rule saved and why, curves,\n"
        "decisions, configuration. For several trainings, it compares their settings, curves and best models.\n"
        "--rule, --patience and --stop-when add rules that the training did not have, as a replay decides."
    )
    parser.epilog = """examples:
  accmt report runs/model --open
  accmt report runs/* -o compared.html
  accmt report mlflow:my-experiment --tracking-uri logs
  accmt report runs/model --text
  accmt report runs/model --rule "best_accuracy@dev by 0.01" --patience 3
"""
    about = "the model_path of a training, or mlflow:EXPERIMENT for all runs of an experiment"
    parser.add_argument("sources", type=path, nargs="+", metavar="FOLDER", help=about)
    parser.add_argument(
        "--rule", dest="rules", action="append", default=[], metavar="RULE", help="what if: a saving rule, by replay"
    )
    add_rule_options(parser)
    parser.add_argument("-o", "--output", type=path, metavar="FILE", help=f"the page to write, {REPORT} by default")
    parser.add_argument("--open", action="store_true", help="show the page in the browser")
    parser.add_argument("--text", action="store_true", help="print a summary for one screen, and write no page")
    parser.add_argument("--tracking-uri", type=path, metavar="URI", help="only for mlflow: its logging_dir, or a URL")


def run(options: argparse.Namespace) -> int:
    """Write the page, or print the summary."""
    if options.text and (options.output is not None or options.open):
        raise UsageError("--text writes no page: leave out --output and --open, or --text")
    if options.tracking_uri is not None and not any(source.startswith(MLFLOW) for source in options.sources):
        raise UsageError(f"--tracking-uri is only for {MLFLOW}EXPERIMENT")
    mistakes = Mistakes()
    given = given_rules(options, mistakes)
    mistakes.tell()
    trainings = [training for source in dict.fromkeys(options.sources) for training in _opened(source, options, given)]
    if options.text:
        console = PlainConsole(file=sys.stdout)
        width, ascii_only = console.width if sys.stdout.isatty() else None, console.options.ascii_only
        write("\n\n".join("\n".join(summary(training, width, ascii_only=ascii_only)) for training in trainings))
        return 0
    try:
        report = write_report(trainings, resolved(options.output or REPORT))
    except (OSError, ValueError, ModuleNotFoundError) as error:
        raise CommandError(escaped(error)) from None
    write(str(shortened(report.path)))
    if options.open and not webbrowser.open(report.path.as_uri()):
        raise CommandError(f"{report.path} was written, but no browser could be opened")
    return 0


def _opened(source: str, options: argparse.Namespace, given: RuleSection) -> list[TrainingReport]:
    """Read the trainings of a source, and add the rules that are given by options."""
    asked = Rules(given.savings, given.stop_when)
    is_supposed = asked != Rules(()) or options.patience is not None
    if given.held_out and not is_supposed:
        raise UsageError("--held-out is for other rules: give --rule, --patience or --stop-when")
    if source.startswith(MLFLOW):
        if is_supposed:
            raise UsageError(f"other rules are replayed for folders only, and {source} is not one")
        from accmt.cli.replay.mlflow import open_experiment  # slow: it imports pydantic

        return open_experiment(source.removeprefix(MLFLOW), options.tracking_uri)
    folder = resolved(source)
    try:
        training = read_training(folder)
    except (OSError, ValueError) as error:
        raise CommandError(escaped(error)) from None
    if not is_supposed:
        return [training]
    recorded = held_apart(open_training(folder, ()), given.held_out)
    rules = chosen_rules(asked, options.patience, recorded)
    check_against(rules, recorded, f"in {shortened(folder)}:")
    cards = supposed(replace(rules, writes=False), recorded.facts, recorded.history)
    return [replace(training, cards=(*training.cards, *cards))]

"""`accmt report`: write a page about trainings, which works offline."""

from __future__ import annotations

import argparse
import sys
import webbrowser

from accmt.cli.arguments import CommandError, UsageError, path
from accmt.cli.output import write
from accmt.display.console import PlainConsole
from accmt.files.paths import resolved, shortened
from accmt.report.live import write_report
from accmt.report.text import summary
from accmt.report.training import TrainingReport, read_training
from accmt.rules.printable import escaped
from accmt.rules.reserved_names import REPORT

_MLFLOW = "mlflow:"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Complete the parser of the command."""
    parser.description = (
        "Write an HTML page about a training, which works offline: its end, what each rule saved and why, curves,\n"
        "decisions, configuration. For several trainings, it compares their settings, curves and best models."
    )
    parser.epilog = """examples:
  accmt report runs/model --open
  accmt report runs/* -o compared.html
  accmt report mlflow:my-experiment --tracking-uri logs
  accmt report runs/model --text
"""
    about = "the model_path of a training, or mlflow:EXPERIMENT for all runs of an experiment"
    parser.add_argument("sources", type=path, nargs="+", metavar="FOLDER", help=about)
    parser.add_argument("-o", "--output", type=path, metavar="FILE", help=f"the page to write, {REPORT} by default")
    parser.add_argument("--open", action="store_true", help="show the page in the browser")
    parser.add_argument("--text", action="store_true", help="print a summary for one screen, and write no page")
    parser.add_argument("--tracking-uri", type=path, metavar="URI", help="only for mlflow: its logging_dir, or a URL")


def run(options: argparse.Namespace) -> int:
    """Write the page, or print the summary."""
    if options.text and (options.output is not None or options.open):
        raise UsageError("--text writes no page: leave out --output and --open, or --text")
    if options.tracking_uri is not None and not any(source.startswith(_MLFLOW) for source in options.sources):
        raise UsageError(f"--tracking-uri is only for {_MLFLOW}EXPERIMENT")
    trainings = [training for source in dict.fromkeys(options.sources) for training in _opened(source, options)]
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
        raise CommandError(f"there is no browser to open {report.path} with")
    return 0


def _opened(source: str, options: argparse.Namespace) -> list[TrainingReport]:
    if source.startswith(_MLFLOW):
        from accmt.cli.replay.mlflow import open_experiment  # slow: it imports pydantic

        return open_experiment(source.removeprefix(_MLFLOW), options.tracking_uri)
    try:
        return [read_training(resolved(source))]
    except (OSError, ValueError) as error:
        raise CommandError(escaped(error)) from None

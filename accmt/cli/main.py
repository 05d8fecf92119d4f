"""The command `accmt`: what it can do, and how it ends.

It exits with 0 when all is well, with 1 when rules or files are not, and with 2 when it was called in a wrong way. What
is wrong goes to stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from accmt import __version__
from accmt.cli.arguments import CommandError, UsageError, metric, positive

_METRIC = "NAME:max|min[@DATASET,...]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and give its exit status."""
    options = _parser().parse_args(arguments)
    try:
        status: int = import_module(f"accmt.cli.{options.command}").run(options)
        sys.stdout.flush()
        return status
    except UsageError as error:
        options.parser.error(str(error))  # exits
        return 2
    except CommandError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="accmt",
        description="Check rules, look at what a training decided, and ask what other rules would have decided.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"accmt {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _check(commands)
    _explain(commands)
    _replay(commands)
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, brief: str, text: str, examples: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=brief,
        description=text,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(parser=parser)
    return parser


def _check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "check",
        "check rules before a training, and say them in words",
        "Check rules, and say what each does in words. All mistakes are told at once, with their places; then the\n"
        "exit status is 1. With the metrics of the training, names, datasets and directions are checked too.",
        '  accmt check "best_accuracy@dev/f1@test keep 3"\n'
        '  accmt check "best_accuracy@dev" --metric accuracy:max --dataset dev --dataset test\n'
        '  accmt check --config hps.yaml --stop-when "elapsed > 2 hours"\n',
    )
    parser.add_argument("rules", nargs="*", metavar="RULE", help="a saving rule, such as best_valid_loss")
    _rule_options(parser)
    parser.add_argument("--checkpoint-every", metavar="CADENCE", help='how often to checkpoint, such as "500 steps"')
    parser.add_argument("--evaluate-every", metavar="CADENCE", help='how often to evaluate, such as "1 epoch"')
    _metric_options(
        parser,
        "a metric of the training, whether higher or lower is better, and on which datasets if not on all; "
        "the losses are always there",
        "a validation dataset; without any, those of the metrics, or one with the key 0",
    )


def _explain(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "explain",
        "show what a training decided, and why",
        "Show the decisions of a training: when each rule saved, why it did not at other times, and why the training\n"
        "stopped.",
        "  accmt explain runs/model\n  accmt explain runs/model --rule accuracy@dev\n",
    )
    parser.add_argument("model_path", metavar="MODEL_PATH", help="the model_path of the training")
    parser.add_argument("--rule", metavar="NAME", help="show this rule only")


def _replay(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "replay",
        "ask what other rules would have decided",
        "What would these rules have saved, and when would the training have stopped? SOURCE is\n"
        "  the model_path of a training;\n"
        "  a CSV file with the columns step, epoch (completed ones), dataset, elapsed (seconds; may be left out), and\n"
        "  one for each metric: the rows of one step are one evaluation, an empty dataset is 0; or\n"
        "  mlflow:RUN_ID, with --metric for each metric that counts.\n"
        "Without rules those of the training decide again, with --patience or --stop-when in the place of theirs.",
        "  accmt replay runs/model --patience 3\n"
        '  accmt replay runs/model --rule "best_worst(accuracy) keep 3" --stop-when "stalled(valid_loss, 2)"\n'
        "  accmt replay scores.csv --rule best_accuracy@dev --metric accuracy:max\n"
        "  accmt replay mlflow:0123abcd --tracking-uri logs --rule best_f1 --metric f1:max --dataset dev\n"
        "  accmt replay runs/model --json | diff - runs/model/decisions.jsonl\n",
    )
    parser.add_argument("source", metavar="SOURCE", help="a model_path, a CSV file, or mlflow:RUN_ID")
    parser.add_argument(
        "--rule", dest="rules", action="append", default=[], metavar="RULE", help="a saving rule; may be repeated"
    )
    _rule_options(parser)
    parser.add_argument("--json", action="store_true", help="write the decisions as JSON, one a line")
    _metric_options(
        parser,
        "whether higher or lower is better, where the source does not say; the losses are known",
        "for mlflow: a dataset by which its names end, such as dev in accuracy_dev",
    )
    parser.add_argument("--tracking-uri", metavar="URI", help="for mlflow: the logging_dir of the training, or a link")


def _rule_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stop-when",
        action="append",
        default=[],
        metavar="CONDITION",
        help='a condition that stops the training, such as "valid_loss < 0.1"; may be repeated',
    )
    parser.add_argument(
        "--patience",
        type=positive,
        metavar="N",
        help="evaluations without improvement after which a rule asks to stop; rules with a patience keep theirs",
    )
    parser.add_argument("--config", metavar="FILE", help="a YAML file with a section 'rules'")


def _metric_options(parser: argparse.ArgumentParser, about_metrics: str, about_datasets: str) -> None:
    lists: dict[str, Any] = {"action": "append", "default": []}
    parser.add_argument("--metric", dest="metrics", type=metric, metavar=_METRIC, help=about_metrics, **lists)
    parser.add_argument("--dataset", dest="datasets", metavar="KEY", help=about_datasets, **lists)


if __name__ == "__main__":
    sys.exit(main())

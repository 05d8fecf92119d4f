"""The command `accmt`: its subcommands and exit statuses.

It exits with 0 on success, 1 if rules or files are wrong, and 2 if it was called incorrectly. Errors go to stderr.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from accmt import __version__
from accmt._compat import MessageParser, Subparsers
from accmt.cli.arguments import CommandError, UsageError, address, gpus, metric, natural, path, positive
from accmt.cli.output import complain, fitting
from accmt.rules.printable import shown

_METRIC = "NAME:max|min[@DATASET,...]"

# Commands whose module is not named as they are.
_ROOMS = {
    "checkpoints": "checkpoints.command",
    "launch": "launch.command",
    "replay": "replay.command",
    "strats": "launch.strats",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status. By default the arguments are those of this process, which may end here."""
    options = _parser().parse_args(arguments)
    try:
        if arguments is None:
            _leave_interrupts_to_the_system(options.command)
        status: int = import_module(f"accmt.cli.{_ROOMS.get(options.command, options.command)}").run(options)
        sys.stdout.flush()
        return status
    except UsageError as error:
        options.parser.error(str(error))  # exits
        return 2
    except CommandError as error:
        complain(str(error))
        return 1
    except BrokenPipeError:  # the reader of the pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


class _Parser(MessageParser):
    """A parser whose messages escape the user's input, so that it cannot control the terminal."""

    def write(self, message: str, stream: Any) -> None:
        super().write(fitting(shown(message, lines=True), stream), stream)


def _leave_interrupts_to_the_system(command: str) -> None:
    """Let Ctrl-C kill the process at any moment.

    As an exception it would be lost while Python shuts down, and would not be raised at all if the process was started
    with interrupts ignored, as shells do for background jobs. Whatever a command writes survives the sudden end of its
    process. `launch` forwards interrupts.
    """
    if command != "launch":
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        prog="accmt",
        description="Check rules, look at what a training decided, and ask what other rules would have decided.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"accmt {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _check(commands)
    _explain(commands)
    _replay(commands)
    _checkpoints(commands)
    _sync(commands)
    _launch(commands)
    _strats(commands)
    return parser


def _command(commands: Subparsers, name: str, brief: str, text: str, examples: str) -> argparse.ArgumentParser:
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


def _check(commands: Subparsers) -> None:
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


def _explain(commands: Subparsers) -> None:
    parser = _command(
        commands,
        "explain",
        "show what a training decided, and why",
        "Show the decisions of a training: when each rule saved, why it did not at other times, and why the training\n"
        "stopped.",
        "  accmt explain runs/model\n  accmt explain runs/model --rule accuracy@dev\n",
    )
    parser.add_argument("model_path", type=path, metavar="MODEL_PATH", help="the model_path of the training")
    parser.add_argument("--rule", metavar="NAME", help="show this rule only")


def _replay(commands: Subparsers) -> None:
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
    parser.add_argument("source", type=path, metavar="SOURCE", help="a model_path, a CSV file, or mlflow:RUN_ID")
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
    parser.add_argument(
        "--tracking-uri", type=path, metavar="URI", help="for mlflow: the logging_dir of the training, or a link"
    )


def _sync(commands: Subparsers) -> None:
    parser = _command(
        commands,
        "sync",
        "send what a training could not send to its trackers",
        "Send the values, artifacts and the final status that a training could not send while it went on. What cannot\n"
        "be sent now waits on; calling this again doubles nothing. The exit status is 1 if something was not sent.\n"
        "It is sent only to places that are named here, and files only from MODEL_PATH, unless others are named.",
        "  accmt sync runs/model --to http://10.0.0.1:5000\n"
        "  accmt sync runs/model --to logs --artifacts-from plots --timeout 60\n",
    )
    parser.add_argument("model_path", type=path, metavar="MODEL_PATH", help="the model_path of the training")
    parser.add_argument(
        "--to",
        dest="destinations",
        action="append",
        default=[],
        metavar="PLACE",
        help="where it may be sent: the address or folder that was the logging_dir, and for other trackers than MLflow "
        "and TensorBoard the name of the tracker besides; may be repeated. MLFLOW_TRACKING_URI names a place too",
    )
    parser.add_argument(
        "--artifacts-from",
        dest="artifacts",
        action="append",
        default=[],
        metavar="PATH",
        help="a file, or a folder whose files may be sent, besides those in MODEL_PATH; may be repeated",
    )
    parser.add_argument(
        "--timeout", type=positive, default=600, metavar="SECONDS", help="how long it may take, 600 by default"
    )


def _checkpoints(commands: Subparsers) -> None:
    parser = _command(
        commands,
        "checkpoints",
        "show what a training has left on the disk, and whether it can be trusted",
        "Show all checkpoints and savings of a training, which checkpoint a resume continues from, and what else lies\n"
        "there. The exit status is 1 if something is damaged. Nothing is written: the folder may be read-only, and a\n"
        "training may be at work in it.",
        "  accmt checkpoints runs/model\n"
        "  accmt checkpoints runs/model --verify\n"
        "  accmt checkpoints runs/model --json\n",
    )
    parser.add_argument("model_path", type=path, metavar="MODEL_PATH", help="the model_path of the training")
    parser.add_argument("--verify", action="store_true", help="read every byte and compare it with its hash")
    parser.add_argument("--json", action="store_true", help="write one JSON object a line")


def _launch(commands: Subparsers) -> None:
    parser = _command(
        commands,
        "launch",
        "start a script on several GPUs, processes or machines",
        "Start a script, by a strategy (accmt strats lists them) or a file that `accelerate config` wrote. What\n"
        "stands behind SCRIPT is the script's own. SIGTERM, Ctrl-C and SIGUSR1 reach every process, and the exit\n"
        "status is that of the script. On several machines it is called on each.",
        "  accmt launch train.py --lr 0.1\n"
        "  accmt launch -N 4 --strat fsdp2-bf16 train.py\n"
        "  accmt launch --gpus 0,1 train.py\n"
        "  accmt launch --cpu -N 2 -m project.train\n"
        "  accmt launch --nodes 2 --node-rank 0 --master node-a train.py\n"
        "  accmt launch --strat deepspeed-2-bf16 --print train.py\n",
    )
    parser.add_argument(
        "-N",
        dest="processes",
        type=positive,
        metavar="PROCESSES",
        help="how many processes to start on this machine; without it one for each GPU, or one with --cpu",
    )
    parser.add_argument(
        "--gpus",
        type=gpus,
        metavar="LIST",
        help="the GPUs to train on, with one process each, such as 0,1: counted from 0 among those that are visible",
    )
    parser.add_argument("--strat", metavar="NAME", help="how to train, such as ddp (the default) or fsdp2-bf16")
    parser.add_argument(
        "--config", type=path, metavar="FILE", help="an Accelerate configuration, in the place of --strat"
    )
    parser.add_argument("--cpu", action="store_true", help="train on CPUs")
    parser.add_argument(
        "--nodes", type=positive, metavar="N", help="how many machines take part, each with -N processes"
    )
    parser.add_argument("--node-rank", type=natural, metavar="N", help="which of them this one is, from 0")
    parser.add_argument(
        "--master", type=address, metavar="HOST[:PORT]", help="where machine 0 is reached; the port is 29500 by default"
    )
    parser.add_argument("--print", action="store_true", help="show what would be started, as a shell script")
    parser.add_argument("-m", dest="module", action="store_true", help="SCRIPT is the name of a module")
    parser.add_argument("script", type=path, metavar="SCRIPT", help="the script")
    rest = parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its arguments")
    rest.required = False  # some versions of Python set it to True, and then report it as missing


def _strats(commands: Subparsers) -> None:
    _command(
        commands,
        "strats",
        "list the strategies of accmt launch",
        "List the strategies that accmt launch knows: what each is, when to take it, and what it needs.",
        "  accmt strats\n",
    )


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
    parser.add_argument("--config", type=path, metavar="FILE", help="a YAML file with a section 'rules'")


def _metric_options(parser: argparse.ArgumentParser, about_metrics: str, about_datasets: str) -> None:
    lists: dict[str, Any] = {"action": "append", "default": []}
    parser.add_argument("--metric", dest="metrics", type=metric, metavar=_METRIC, help=about_metrics, **lists)
    parser.add_argument("--dataset", dest="datasets", metavar="KEY", help=about_datasets, **lists)


if __name__ == "__main__":
    sys.exit(main())

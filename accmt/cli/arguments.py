"""Options that several commands share, parsers of their values, and the two errors that end a command."""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import dataclass
from typing import Any

_METRIC_FORM = "NAME:max|min[@DATASET,...]"
_METRIC = re.compile(r"(?P<name>.+?):(?P<direction>max|min)(?:@(?P<datasets>.+))?", re.DOTALL)
# An IPv6 address is in brackets if a port follows.
_ADDRESS = re.compile(r"(?:(?P<host>[^\s:\[\]]+)|\[(?P<bracketed>[0-9A-Fa-f:.]+)\])(?::(?P<port>[0-9]{1,9}))?")
_LAST_PORT = 65535
_LOOKS_LIKE = re.compile(r"(?P<name>.+):(?P<direction>[^:@]*)(?:@.*)?", re.DOTALL)


class CommandError(Exception):
    """Raised when a command cannot do what was asked; the exit status is 1."""


class UsageError(Exception):
    """Raised when a command was called incorrectly; the exit status is 2."""


@dataclass(frozen=True, slots=True)
class MetricArgument:
    """A metric from `--metric`: its direction (None if left out) and its datasets (empty for all)."""

    name: str
    greater_is_better: bool | None
    datasets: tuple[str, ...] = ()


def add_rule_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for stop conditions, patience and rules in a file."""
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
        help="evaluations without improvement after which a rule asks to stop; a rule's own patience takes precedence",
    )
    parser.add_argument(
        "--held-out",
        action="append",
        default=[],
        metavar="KEY",
        help="a validation dataset for reporting only: rules leave it out, and may not name it; may be repeated",
    )
    parser.add_argument("--config", type=path, metavar="FILE", help="a YAML file with a section 'rules'")


def add_metric_options(parser: argparse.ArgumentParser, about_metrics: str, about_datasets: str) -> None:
    """Add the options for metrics and datasets."""
    lists: dict[str, Any] = {"action": "append", "default": []}
    parser.add_argument("--metric", dest="metrics", type=metric, metavar=_METRIC_FORM, help=about_metrics, **lists)
    parser.add_argument("--dataset", dest="datasets", metavar="KEY", help=about_datasets, **lists)


def metric(text: str) -> MetricArgument:
    """Parse `--metric`: `accuracy:max`, `loss:min@dev,test`, or a name alone, which no rule can rank by."""
    if found := _METRIC.fullmatch(text):
        datasets = tuple(found["datasets"].split(",")) if found["datasets"] else ()
        argument = MetricArgument(found["name"], found["direction"] == "max", datasets)
    elif found := _LOOKS_LIKE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected max or min after ':', as in {found['name']}:max")
    else:
        argument = MetricArgument(text, None)
    if argument.name == "train_loss" or (argument.name == "valid_loss" and argument.greater_is_better is not False):
        raise argparse.ArgumentTypeError(f"leave out {argument.name}: it is always reported, and lower is better")
    if not argument.name or "" in argument.datasets or len(set(argument.datasets)) < len(argument.datasets):
        raise argparse.ArgumentTypeError(f"{text!r}: a name is empty or given twice, write it like a:max@dev,test")
    return argument


def path(text: str) -> str:
    """Expand `~` in a path, which the shell leaves alone in `--config=~/hps.yaml`."""
    return os.path.expanduser(text)


def positive(text: str, least: int = 1) -> int:
    """Parse a whole number of at least `least`."""
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return int(text)


def natural(text: str) -> int:
    """Parse a whole number of at least 0."""
    return positive(text, 0)


def gpus(text: str) -> tuple[int, ...]:
    """Parse `--gpus`: different whole numbers from 0, such as `0,1`."""
    numbers = tuple(int(part) if part.isascii() and part.isdigit() else -1 for part in text.split(","))
    if min(numbers) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of GPU numbers from 0, such as 0,1")
    if repeated := [number for number in numbers if numbers.count(number) > 1]:
        raise argparse.ArgumentTypeError(f"{text!r} names GPU {repeated[0]} more than once: each GPU runs one process")
    return numbers


def address(text: str) -> tuple[str, int | None]:
    """Parse `--master`: a host and its port, None if no port is given."""
    found = _ADDRESS.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST or HOST:PORT, such as node-a:29500 or [fe80::1]:29500")
    port = int(found["port"]) if found["port"] else None
    if port is not None and not 1 <= port <= _LAST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r}: a port is a whole number from 1 to {_LAST_PORT}")
    return found["host"] or found["bracketed"], port

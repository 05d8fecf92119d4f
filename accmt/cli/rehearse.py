"""`accmt rehearse`: try the training of a script, killed and resumed, before it is left alone."""

from __future__ import annotations

import argparse
import signal
import sys
from functools import partial

from accmt.cli.arguments import CommandError, UsageError
from accmt.cli.launch import command as launch
from accmt.cli.output import complain, write
from accmt.rehearsal.runs import RehearsalFailed, make_runs, run_program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Complete the parser of the command."""
    launch.add_arguments(parser)
    parser.description = (
        "Start a script three times, as `accmt launch` does with the same options, or as `python` without any. Of its\n"
        "first training, a few steps are made in a temporary folder, killed and resumed. The exit status is 1 if the\n"
        "resumed training differs from an uninterrupted one, or if something failed."
    )
    parser.epilog = """examples:
  accmt rehearse train.py --lr 0.1
  accmt rehearse -N 2 --cpu -m project.train
"""


def run(options: argparse.Namespace) -> int:
    """Rehearse a script; the exit status is 1 if its training does not resume exactly.

    Raises:
        UsageError: The arguments contradict each other.
        CommandError: A run failed.
    """
    if options.print or options.nodes:
        raise UsageError("--print and --nodes are options of accmt launch: a rehearsal runs on one machine")
    is_launched = options.cpu or {options.processes, options.gpus, options.strat, options.config} != {None}
    arguments, variables = (launch.python_call if is_launched else launch.plain_call)(options)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))  # deletes what was written
    try:
        found = make_runs(partial(run_program, [sys.executable, *arguments], variables), complain)
    except RehearsalFailed as error:
        raise CommandError(str(error)) from None
    write(str(found))
    return 1 if found.differences else 0

"""`accmt rehearse`: try the training of a script, killed and resumed, before it is left alone."""

from __future__ import annotations

import argparse
import signal
import sys
from functools import partial

from accmt.cli.arguments import CommandError, path
from accmt.cli.output import complain, write
from accmt.rehearsal.runs import RehearsalFailed, make_runs, run_program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Complete the parser of the command."""
    parser.description = (
        "Start a script three times. Of its first training, a few steps are made in a temporary folder, killed and\n"
        "resumed. The exit status is 1 if the resumed training differs from an uninterrupted one, or if a run failed."
    )
    parser.epilog = "examples:\n  accmt rehearse train.py --lr 0.1\n  accmt rehearse launch -N 2 train.py --lr 0.1\n"
    parser.add_argument("script", type=path, metavar="SCRIPT", help="the script; or `launch`, as in `accmt launch`")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its arguments").required = False


def run(options: argparse.Namespace) -> int:
    """Rehearse a script; the exit status is 1 if its training does not resume exactly.

    Raises:
        CommandError: A run failed.
    """
    if sys.platform == "win32":
        raise CommandError("a rehearsal kills the training by SIGKILL, which Windows does not have")
    how = ["-m", "accmt.cli.main"] if options.script == "launch" else ["-u"]
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))  # deletes what was written
    try:
        found = make_runs(partial(run_program, [sys.executable, *how, options.script, *options.arguments]), complain)
    except RehearsalFailed as error:
        raise CommandError(str(error)) from None
    write(str(found))
    return 1 if found.differences else 0

"""`accmt launch`: run a script on several processes, with a strategy or an Accelerate configuration."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from pathlib import Path

from accmt.cli.arguments import CommandError, UsageError
from accmt.cli.launch.configuration import launch_command
from accmt.cli.output import complain, write_shell
from accmt.config.errors import did_you_mean


def run(options: argparse.Namespace) -> int:
    """Become the process that starts the script; or, with `--print`, show what would be started.

    Raises:
        UsageError: The arguments contradict each other.
        CommandError: The script does not exist, or this machine lacks what is asked for.
    """
    if options.strat is not None and options.config is not None:
        raise UsageError("--strat and --config both say how to train: give one of them")
    if not options.print:
        _check_script(options.script, options.module)
    launch = launch_command(options)
    command = [*(["-m"] if options.module else []), options.script, *options.arguments]
    if not options.print:
        complain(f"accmt launch: {launch}")
    if not launch.is_script_itself:
        # -P: a user's file beside the script, such as random.py, must not shadow a module that the launcher imports.
        how = json.dumps([launch.source, launch.configuration, launch.environment, options.print])
        _become(["-P", "-m", "accmt.cli.launch.launcher", how, *command])
    elif options.print:
        write_shell(launch.environment, ["python", "-u", *command])
    else:
        _become(["-u", *command], launch.environment)
    return 0


def _become(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Replace this process by Python, so that signals and the exit status need no process in between."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *arguments], {**os.environ, **(environment or {})})


def _check_script(script: str, is_module: bool) -> None:
    """Check that Python will find the script.

    Raises:
        CommandError: It does not; otherwise each process would report it.
    """
    if is_module:
        top = script.partition(".")[0]
        places = [os.getcwd(), *sys.path[1:]]
        finders = (BuiltinImporter.find_spec, FrozenImporter.find_spec, lambda name: PathFinder.find_spec(name, places))
        if not any(find(top) for find in finders):
            raise CommandError(f"there is no module '{top}', seen from {os.getcwd()}")
        return
    path = Path(script)
    if path.is_dir() and not (path / "__main__.py").exists():
        raise CommandError(f"{script} is a directory without a __main__.py")
    if not path.exists():
        near = did_you_mean(path.name, (file.name for file in path.parent.glob("*.py")))
        raise CommandError(f"there is no script {script}, seen from {os.getcwd()}{near}")

"""`accmt launch`: run a script on several processes, with a strategy or an Accelerate configuration."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from pathlib import Path

from accmt.cli.arguments import CommandError, UsageError
from accmt.cli.launch.plan import Plan, plan
from accmt.cli.output import complain
from accmt.config.errors import did_you_mean


def run(options: argparse.Namespace) -> int:
    """Become the process that starts the script; or, with `--print`, show what would be started.

    Raises:
        UsageError: If the arguments contradict each other.
        CommandError: If the script does not exist, or this machine lacks what is asked for.
    """
    if options.strat is not None and options.config is not None:
        raise UsageError("--strat and --config both say how to train: give one of them")
    if not options.print:
        _check_script(options.script, options.module)
    planned = plan(options)
    command = [*(["-m"] if options.module else []), options.script, *options.arguments]
    if options.print:
        sys.stdout.write(_shown(planned, options.module, command[options.module :]))
        return 0
    complain(f"accmt launch: {_in_words(planned)}")
    _become(planned, command)
    return 0


def _become(planned: Plan, command: Sequence[str]) -> None:
    """Replace this process, so that signals and the exit status need no process in between."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = ["-u"]
    if planned.needs_launcher:
        # -P: a user's file beside the script, such as random.py, must not shadow a module that the launcher imports.
        before = ["-P", "-m", "accmt.cli.launch.launcher", planned.source, json.dumps(planned.configuration)]
    os.execve(sys.executable, [sys.executable, *before, *command], {**os.environ, **planned.environment})


def _check_script(script: str, is_module: bool) -> None:
    """Check that Python will find the script.

    Raises:
        CommandError: If not; otherwise each process would report it.
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


def _in_words(planned: Plan) -> str:
    """Describe the chosen strategy and processes, which may be defaults."""
    processes = "1 process" if planned.processes == 1 else f"{planned.processes} processes"
    devices = " on CPUs" if planned.on_cpus else ""
    machines = f", on each of {planned.machines} machines" if planned.machines > 1 else ""
    return f"{planned.source}, {processes}{devices}{machines}"


def _shown(planned: Plan, is_module: bool, command: Sequence[str]) -> str:
    """Return a shell script that starts the same with Accelerate's own command."""
    import yaml

    file = f"accmt-{Path(planned.source).stem}.yaml"
    exports = [f"export {name}={shlex.quote(value)}" for name, value in planned.environment.items()]
    launch = ["accelerate", "launch", "--config_file", file, *(["--module"] if is_module else []), *command]
    paragraphs = [
        ["# the environment", *exports],
        [
            "# the configuration, as accmt launch --config takes it too",
            f"cat > {shlex.quote(file)} <<'END'",
            yaml.safe_dump(dict(planned.configuration), sort_keys=False).rstrip(),
            "END",
        ],
        ["# the command", shlex.join(launch)],
    ]
    return "\n\n".join("\n".join(lines) for lines in paragraphs if len(lines) > 1) + "\n"

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

from accmt.cli.arguments import CommandError, UsageError, address, natural, path, positive
from accmt.cli.launch.plan import Plan, plan
from accmt.cli.output import complain
from accmt.config.errors import did_you_mean


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Complete the parser of the command."""
    parser.description = (
        "Start a script with a strategy (accmt strats lists them) or with a file that `accelerate config` wrote.\n"
        "Everything after SCRIPT is passed to the script. SIGTERM, Ctrl-C and SIGUSR1 reach every process, and the\n"
        "exit status is that of the script. For several machines, call it on each of them."
    )
    parser.epilog = """examples:
  accmt launch train.py --lr 0.1
  accmt launch -N 4 --strat fsdp2-bf16 train.py
  accmt launch --cpu -N 2 -m project.train
  accmt launch --nodes 2 --node-rank 0 --master node-a train.py
  accmt launch --strat deepspeed-2-bf16 --print train.py
"""
    parser.add_argument(
        "-N",
        dest="processes",
        type=positive,
        metavar="PROCESSES",
        help="how many processes to start on this machine; by default one for each GPU, or one with --cpu",
    )
    parser.add_argument("--strat", metavar="NAME", help="how to train, such as ddp (the default) or fsdp2-bf16")
    parser.add_argument("--config", type=path, metavar="FILE", help="an Accelerate configuration, instead of --strat")
    parser.add_argument("--cpu", action="store_true", help="train on CPUs")
    parser.add_argument("--nodes", type=positive, metavar="N", help="the number of machines, each with -N processes")
    parser.add_argument("--node-rank", type=natural, metavar="N", help="the number of this machine, from 0")
    parser.add_argument(
        "--master", type=address, metavar="HOST[:PORT]", help="the address of machine 0; the port is 29500 by default"
    )
    parser.add_argument("--print", action="store_true", help="show what would be started, as a shell script")
    parser.add_argument("-m", dest="module", action="store_true", help="SCRIPT is the name of a module")
    parser.add_argument("script", type=path, metavar="SCRIPT", help="the script")
    rest = parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its arguments")
    rest.required = False  # some versions of Python set it to True, and then report it as missing


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

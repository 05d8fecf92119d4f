"""`accmt launch`: run a script on several processes, with a strategy or an Accelerate configuration."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from pathlib import Path

from accmt.cli.arguments import CommandError, UsageError, address, gpus, natural, path, positive
from accmt.cli.launch.configuration import launch_command
from accmt.cli.output import complain, write_shell
from accmt.config.errors import did_you_mean
from accmt.seed_run import seed_of_run


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
  accmt launch --gpus 0,1 train.py
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
    parser.add_argument(
        "--gpus",
        type=gpus,
        metavar="LIST",
        help="the GPUs to train on, with one process each, such as 0,1: counted from 0 among those that are visible",
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
        UsageError: The arguments contradict each other.
        CommandError: The script does not exist, or this machine lacks what is asked for.
    """
    if options.strat is not None and options.config is not None:
        raise UsageError("--strat and --config both say how to train: give one of them")
    if not options.print:
        _check_script(options.script, options.module)
    launch = launch_command(options)
    if sys.platform == "win32" and not launch.is_script_itself:
        text = "accmt launch passes on signals that Windows does not have: start several processes by torchrun"
        raise CommandError(text)
    seeded = [] if seed_of_run() is None else ["-m", "accmt.cli.seeds.seeded"]
    command = [*seeded, *(["-m"] if options.module else []), options.script, *options.arguments]
    if not options.print:
        complain(f"accmt launch: {launch}")
    if not launch.is_script_itself:
        # -P: a user's file next to the script, such as random.py, must not shadow a module that the launcher imports.
        how = json.dumps([launch.source, launch.configuration, launch.environment, options.print])
        _become(["-P", "-m", "accmt.cli.launch.launcher", how, *command])
    elif options.print:
        write_shell(launch.environment, ["python", "-u", *command])
    else:
        _become(["-u", *command], launch.environment)
    return 0


def _become(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Replace this process by Python, so that signals and the exit status need no process in between.

    Windows cannot: there, this process waits.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    command, variables = [sys.executable, *arguments], {**os.environ, **(environment or {})}
    if sys.platform == "win32":
        sys.exit(subprocess.call(command, env=variables))
    os.execve(sys.executable, command, variables)


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
            raise CommandError(f"there is no module '{top}' (the current folder is {os.getcwd()})")
        return
    path = Path(script)
    if path.is_dir() and not (path / "__main__.py").exists():
        raise CommandError(f"{script} is a directory without a __main__.py")
    if not path.exists():
        near = did_you_mean(path.name, (file.name for file in path.parent.glob("*.py")))
        raise CommandError(f"there is no script {script} (the current folder is {os.getcwd()}){near}")

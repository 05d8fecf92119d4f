"""The command `accmt`: its subcommands and exit statuses.

It exits with 0 on success, 1 if rules or files are wrong, and 2 if it was called incorrectly. Errors go to stderr.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from accmt import __version__
from accmt._compat import MessageParser
from accmt.cli.arguments import CommandError, UsageError
from accmt.cli.output import complain, fitting
from accmt.config.errors import did_you_mean
from accmt.rules.errors import nearest
from accmt.rules.printable import shown

# Each command is a module below `accmt.cli`, imported only when the command is called. The module has `add_arguments`,
# which completes a parser, and `run`, which takes the parsed options and returns the exit status.
_COMMANDS = {
    "check": ("check", "check rules before a training, and describe them in words"),
    "explain": ("explain", "show what a training decided, and why"),
    "replay": ("replay.command", "show what other rules would have decided"),
    "report": ("report", "write a page about trainings that works offline"),
    "sweep": ("sweep", "show what other patience would have saved in finished trainings, and lost"),
    "checkpoints": ("checkpoints.command", "list what a training has on the disk, and find damage in it"),
    "weights": ("weights", "write the weights of a checkpoint or a saved model as safetensors"),
    "sync": ("sync", "send what a training could not send to its trackers"),
    "rehearse": ("rehearse", "try a script's training before it runs: its cost, and whether it resumes exactly"),
    "seeds": ("seeds.command", "run a script once for each seed, or compare the models of two such sets of runs"),
    "launch": ("launch.command", "start a script on several GPUs, processes or machines"),
    "strats": ("launch.strats", "list the strategies of accmt launch"),
}
# Module -> the distribution that has it. Only `check`, `explain` and `replay` of texts and folders need lark alone.
_PACKAGES = {
    **{name: name for name in ("accelerate", "numpy", "psutil", "pydantic", "rich", "safetensors", "torch")},
    **{"huggingface_hub": "huggingface-hub", "pynvml": "nvidia-ml-py", "yaml": "pyyaml"},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status. By default the arguments are those of this process, which may end here."""
    try:
        return _run(arguments)
    except ModuleNotFoundError as error:  # accmt may be installed without its dependencies, for commands that need none
        if error.name not in _PACKAGES:
            raise
        complain(f"this needs {error.name}, which is not installed: pip install {_PACKAGES[error.name]}")
        return 1


def _run(arguments: Sequence[str] | None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    name = next((argument for argument in given if not argument.startswith("-")), None)
    command = import_module(f"accmt.cli.{_COMMANDS[name][0]}") if name in _COMMANDS else None
    parser = _parser(name, command)
    if name is not None and name == given[0] and command is None:
        parser.error(f"there is no command '{name}'{did_you_mean(name, _COMMANDS)} Commands are {', '.join(_COMMANDS)}")
    options, unknown = parser.parse_known_args(given)
    if unknown:
        names = {name.lstrip("-"): name for name in options.parser.option_names()}
        near = nearest(unknown[0].partition("=")[0].lstrip("-"), names)
        hint = "" if near is None else f", did you mean {names[near]}?"
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    if command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        if arguments is None:
            _leave_interrupts_to_the_system(options.command)
        status: int = command.run(options)
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

    examples = ""

    def format_help(self) -> str:
        return super().format_help() + self.examples  # an epilog would be filled like the description

    def write(self, message: str, stream: Any) -> None:
        super().write(fitting(shown(message, lines=True), stream), stream)


def _parser(called: str | None, command: ModuleType | None) -> _Parser:
    """Return the parser, complete for the command that is called; of the others it knows only the names."""
    parser = _Parser(
        prog="accmt",
        description="Check rules, show what a training decided and what it left on the disk, and start trainings.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"accmt {__version__}")
    parser.set_defaults(parser=parser)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (_, brief) in _COMMANDS.items():
        subparser = commands.add_parser(name, help=brief, allow_abbrev=False)
        subparser.set_defaults(parser=subparser)
        if name == called and command is not None:
            command.add_arguments(subparser)
            subparser.examples, subparser.epilog = f"\n{subparser.epilog}", None
    return parser


def _leave_interrupts_to_the_system(command: str) -> None:
    """Let Ctrl-C kill the process at any moment.

    As an exception it would be lost while Python shuts down, and would not be raised at all if the process was started
    with interrupts ignored, as shells do for background jobs. Whatever a command writes survives the sudden end of its
    process. `launch` and `seeds` forward interrupts; `weights` and `rehearse` delete what they have written so far.
    """
    if command not in ("launch", "weights", "rehearse", "seeds"):
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())

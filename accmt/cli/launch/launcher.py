"""The process that `accmt launch` runs for several ranks: Accelerate's launcher plus forwarding of signals.

Accelerate's launcher sets the environment and starts the ranks through torchrun. Left alone, torchrun exits with 1 and
a traceback of its own, whatever a rank's exit status. It also sends signals to data-loading workers, without which no
training reaches its checkpoint, and after 30 seconds kills ranks that are still writing one. So signals are caught
here, sent to the ranks only and waited for, and this process exits with the status of the script.

Run only by module name, with a name for the configuration, the configuration and the command:
`python -m accmt.cli.launch.launcher ddp '{...}' [-m] train.py ...`.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from accmt._compat import validated_launch_arguments
from accmt.cli.output import complain

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_PASSED = (*_ENDING, signal.SIGUSR1, signal.SIGUSR2)
# Torchrun requires a signal to handle. Nobody sends this one by accident.
_LEFT_TO_TORCHRUN = "SIGURG"
_SAID_BY_TORCHRUN = ("failed (exitcode:", "Sending process ")
# Seconds that the other ranks get after a signal ended one: the main rank may still be sending to its trackers.
_PATIENCE = 660.0


class Ended(BaseException):
    """Raised when a signal ends this process and no rank has to end first."""


class Signals:
    """Forwards the signals that this process receives to the ranks.

    `asked` is the last signal that asked the training to end, and `times` counts such signals.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.times = 0

    def take(self) -> None:
        """Catch all signals from now on, except ignored ones, as under nohup."""
        for number in _PASSED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._pass_on)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        ranks = _ranks()
        if number not in _ENDING:
            for rank in ranks:
                _send(rank, number)
            return
        self.asked, self.times = number, self.times + 1
        for process in ranks or psutil.Process().children():
            _send(process, number if self.times < 3 else signal.SIGKILL)
        if not ranks:
            raise Ended
        _await(ranks)


def main(arguments: Sequence[str]) -> int:
    """Start the processes, wait for them, and return the exit status of the script."""
    signals = Signals()
    signals.take()
    name, configuration, *command = arguments
    try:
        status = _launch(name, json.loads(configuration), command, signals)
    except Ended:
        status = -signals.asked
    if status < 0 and -status == signals.asked:
        signal.signal(signals.asked, signal.SIG_DFL)
        signal.raise_signal(signals.asked)
    return status if status >= 0 else 128 - status  # as a shell reports that a signal ended a process


def _launch(name: str, configuration: Mapping[str, Any], command: Sequence[str], signals: Signals) -> int:
    """Let Accelerate run the command and return its exit status; negative for the signal that ended it."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    module = ["--module"] if command[0] == "-m" else []
    file, program = Path(name), []
    try:
        with tempfile.TemporaryDirectory(prefix="accmt-") as folder:
            file = Path(folder, "configuration.json")
            file.write_text(json.dumps(configuration))
            given = launch_command_parser().parse_args(["--config_file", str(file), *module, *command[len(module) :]])
            given.signals_to_handle = _LEFT_TO_TORCHRUN
            given.log_dir = folder  # otherwise torchrun creates a folder that nobody removes
            logging.getLogger("torch.distributed.elastic.multiprocessing.api").addFilter(_is_news)
            if configuration["distributed_type"] in ("NO", "MULTI_CPU"):
                program, environment = prepare_simple_launcher_cmd_env(validated_launch_arguments(given)[0])
            else:
                launch_command(given)
        if program:  # the script itself, or mpirun, replaces this process
            os.execvpe(program[0], program, {**environment, "PYTHONUNBUFFERED": "1"})
    except ChildFailedError as error:
        return _outcome(error.failures, signals)
    except (ValueError, OSError, ImportError) as error:
        text = str(error).replace(str(file), name)
        complain(f"accmt launch: Accelerate cannot launch {name}: {text}")
        return 1
    return 0


def _outcome(failures: Mapping[int, Any], signals: Signals) -> int:
    """Return the exit status of the script, and report which ranks failed unless they were asked to end."""
    first = min(failure.timestamp for failure in failures.values())
    # Torchrun ends the other ranks by SIGTERM, 30 seconds later by SIGKILL; its clock has a resolution of seconds.
    early = {rank: failures[rank].exitcode for rank in sorted(failures) if failures[rank].timestamp <= first + 1}
    by_themselves = {rank: code for rank, code in early.items() if -code not in (signal.SIGTERM, *_asked(signals))}
    if signals.asked and not by_themselves:
        return -signals.asked
    causes: dict[int, int] = by_themselves or early
    complain(f"accmt launch: {', '.join(_in_words(rank, code) for rank, code in causes.items())}")
    return next(iter(causes.values()))


def _asked(signals: Signals) -> tuple[int, ...]:
    """Return the signals that may have ended a rank because it was asked to end."""
    if signals.times > 2:
        return (*_ENDING, signal.SIGKILL)
    return _ENDING if signals.asked else ()


def _in_words(rank: int, code: int) -> str:
    return f"rank {rank} ended with status {code}" if code >= 0 else f"rank {rank} was ended by {_name(-code)}"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a message of torchrun is not already reported here."""
    return not str(record.msg).startswith(_SAID_BY_TORCHRUN)


def _ranks() -> list[psutil.Process]:
    """Return the live ranks: torchrun starts each in its own session, and nothing else is started so."""
    return [child for child in psutil.Process().children() if _lives(child) and _leads(child)]


def _leads(process: psutil.Process) -> bool:
    try:
        return os.getsid(process.pid) == process.pid
    except ProcessLookupError:
        return False


def _lives(process: psutil.Process) -> bool:
    """Return whether a process is alive; one that ended stays a zombie until its parent reaps it."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _send(process: psutil.Process, number: int) -> None:
    try:
        if number == signal.SIGKILL and _leads(process):
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
    except (psutil.NoSuchProcess, ProcessLookupError):
        pass


def _await(ranks: Sequence[psutil.Process]) -> None:
    """Wait until all ranks have ended. Torchrun is blocked until then; it would kill the rest on the first exit."""
    until = None
    while (living := sum(map(_lives, ranks))) and (until is None or time.monotonic() < until):
        if until is None and living < len(ranks):
            until = time.monotonic() + _PATIENCE
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The process that `accmt launch` becomes where it starts several: Accelerate's launcher, and who passes things on.

Accelerate's launcher sets the environment and starts the processes ("ranks") by the functions of torchrun. Left alone,
these end with 1 and a traceback of their own, whatever a rank ended with. They send a signal also to the workers that
load data, without which no training comes to its checkpoint, and kill 30 seconds later what still writes one. So
signals are taken here, sent to the ranks alone and waited for, and this process ends as the script did.

Run by name only, with a configuration, what to call it, and the command:
`python -m accmt.launcher ddp '{...}' [-m] train.py ...`.
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

from accmt.cli.output import complain

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_PASSED = (*_ENDING, signal.SIGUSR1, signal.SIGUSR2)
# Torchrun wants a signal to handle. This one comes to nobody who has not asked for it.
_LEFT_TO_TORCHRUN = "SIGURG"
_SAID_BY_TORCHRUN = ("failed (exitcode:", "Sending process ")
# Seconds that the others have, once a rank has ended by a signal: the main one may be sending to its trackers.
_PATIENCE = 660.0


class Ended(BaseException):
    """A signal ends this process, and there is no rank that has to end before it."""


class Signals:
    """Sends the signals that this process gets on to the ranks.

    `asked` is the one by which the training was last asked to end, and `times` how often it was.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.times = 0

    def take(self) -> None:
        """From now on, all but those that this process ignores, as under nohup."""
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
    """Start the processes, wait for them, and give the exit status of the script."""
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
    return status if status >= 0 else 128 - status  # as a shell says that a signal ended a process


def _launch(name: str, configuration: Mapping[str, Any], command: Sequence[str], signals: Signals) -> int:
    """Let Accelerate start the command, and give its exit status; a signal that ended it is a negative number."""
    from accelerate.commands.launch import _validate_launch_command, launch_command, launch_command_parser
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
            given.log_dir = folder  # else torchrun makes a folder that nobody removes
            logging.getLogger("torch.distributed.elastic.multiprocessing.api").addFilter(_is_news)
            if configuration["distributed_type"] in ("NO", "MULTI_CPU"):
                program, environment = prepare_simple_launcher_cmd_env(_validate_launch_command(given)[0])
            else:
                launch_command(given)
        if program:  # the script itself, or mpirun, in the place of this process
            os.execvpe(program[0], program, {**environment, "PYTHONUNBUFFERED": "1"})
    except ChildFailedError as error:
        return _outcome(error.failures, signals)
    except (ValueError, OSError, ImportError) as error:
        text = str(error).replace(str(file), name)
        complain(f"accmt launch: Accelerate cannot launch {name}: {text}")
        return 1
    return 0


def _outcome(failures: Mapping[int, Any], signals: Signals) -> int:
    """What the script ended with, and who ended so is said, unless it was asked to."""
    first = min(failure.timestamp for failure in failures.values())
    # Torchrun ends the others by SIGTERM, and 30 seconds later by SIGKILL; its clock counts seconds.
    early = {rank: failures[rank].exitcode for rank in sorted(failures) if failures[rank].timestamp <= first + 1}
    by_themselves = {rank: code for rank, code in early.items() if -code not in (signal.SIGTERM, *_asked(signals))}
    if signals.asked and not by_themselves:
        return -signals.asked
    causes: dict[int, int] = by_themselves or early
    complain(f"accmt launch: {', '.join(_in_words(rank, code) for rank, code in causes.items())}")
    return next(iter(causes.values()))


def _asked(signals: Signals) -> tuple[int, ...]:
    """The signals that a rank may have ended by, because it was asked to."""
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
    """Whether torchrun says something that is not said here."""
    return not str(record.msg).startswith(_SAID_BY_TORCHRUN)


def _ranks() -> list[psutil.Process]:
    """The ranks that live. Torchrun starts each in a session of its own, and nothing else is started so."""
    return [child for child in psutil.Process().children() if _lives(child) and _leads(child)]


def _leads(process: psutil.Process) -> bool:
    try:
        return os.getsid(process.pid) == process.pid
    except ProcessLookupError:
        return False


def _lives(process: psutil.Process) -> bool:
    """Whether a process has not ended; that it did is left for its parent to see."""
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
    """Wait until all have ended. Torchrun does not go on meanwhile; it would end the others when it sees the first."""
    until = None
    while (living := sum(map(_lives, ranks))) and (until is None or time.monotonic() < until):
        if until is None and living < len(ranks):
            until = time.monotonic() + _PATIENCE
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

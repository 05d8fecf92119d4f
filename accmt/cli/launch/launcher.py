"""The process that `accmt launch` becomes: torchrun, in the environment that a configuration of Accelerate means.

By itself, torchrun exits with status 1 and its own traceback, whatever a rank's exit status. It also sends signals to
data-loading workers, without which no training reaches its checkpoint, and after 30 seconds kills ranks that are still
writing one. So signals are caught here, sent to the ranks only and waited for, and this process exits with the status
of the script.

Run only by module name, with the parts of a `LaunchCommand`, whether to show it only, and the command:
`python -m accmt.cli.launch.launcher '["ddp", {...}, {...}, false]' [-m] train.py ...`.
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
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from accmt._compat import validated_launch_arguments
from accmt.cli.output import complain, write_shell

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_PASSED = (*_ENDING, signal.SIGUSR1, signal.SIGUSR2)
# Torchrun requires a signal to handle. This one is not sent by accident.
_LEFT_TO_TORCHRUN = "SIGURG"
_SAID_BY_TORCHRUN = ("failed (exitcode:", "Sending process ")
# Seconds that the other ranks get after a signal ended one: the main rank may still be sending to its trackers.
_PATIENCE = 660.0


class ForwardedSignals:
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
        children = [child.pid for child in psutil.Process().children() if _lives(child.pid)]
        ranks = [pid for pid in children if os.getsid(pid) == pid]  # torchrun starts each in its own session
        if number in _ENDING:
            self.asked, self.times = number, self.times + 1
        is_last = self.times > 2 and number in _ENDING
        for pid in ranks or (children if number in _ENDING else ()):
            with suppress(ProcessLookupError):
                if is_last and ranks:
                    os.killpg(pid, signal.SIGKILL)
                else:
                    os.kill(pid, number)
        if number in _ENDING:
            if not ranks:
                raise KeyboardInterrupt
            _await(ranks)


def main(arguments: Sequence[str]) -> int:
    """Start the processes, wait for them, and return the exit status of the script; or show what would be started."""
    how, *command = arguments
    source, configuration, additions, is_shown = json.loads(how)
    before = dict(os.environ)
    os.environ.update(additions)
    signals = ForwardedSignals()
    signals.take()
    try:
        program, environment = _by_accelerate(source, configuration, command)
        if is_shown:
            changes = {name: value for name, value in environment.items() if before.get(name) != value}
            write_shell(changes, ["python" if part == sys.executable else part for part in program])
            return 0
        os.environ.update(environment)
        if program[0] != "torchrun":  # the script itself, or mpirun, replaces this process
            os.execvp(program[0], program)
        status = _torchrun(program[1:], signals)
    except (ValueError, OSError, ImportError) as error:
        complain(f"accmt launch: Accelerate cannot launch {source}: {error}")
        return 1
    except KeyboardInterrupt:
        status = -signals.asked
    if status < 0 and -status == signals.asked:
        signal.signal(signals.asked, signal.SIG_DFL)
        signal.raise_signal(signals.asked)
    return status if status >= 0 else 128 - status  # as a shell reports that a signal ended a process


def _by_accelerate(
    source: str, configuration: Mapping[str, Any], command: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """Return the program and the environment that a configuration means, by Accelerate's own functions."""
    from accelerate import utils
    from accelerate.commands.launch import launch_command_parser

    with tempfile.TemporaryDirectory(prefix="accmt-") as folder:
        file = Path(folder, "configuration.json")
        file.write_text(json.dumps(configuration))
        given = launch_command_parser().parse_args(["--config_file", str(file), *command])
        try:
            given, known, _ = validated_launch_arguments(given)
        except ValueError as error:
            raise ValueError(str(error).replace(str(file), source)) from None
    if configuration["distributed_type"] in ("NO", "MULTI_CPU"):
        program, environment = utils.prepare_simple_launcher_cmd_env(given)
        return program, environment | {"PYTHONUNBUFFERED": "1"}
    environment = {"OMP_NUM_THREADS": "1"}
    if not utils.check_cuda_p2p_ib_support():
        environment |= {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"}
    if given.use_deepspeed:
        given.deepspeed_fields_from_accelerate_config = ",".join([*known.deepspeed_config, "mixed_precision"])
        environment |= utils.prepare_deepspeed_cmd_env(given)[1]
    else:
        environment |= utils.prepare_multi_gpu_env(given)
    port = 0 if getattr(given, "standalone", False) else configuration["main_process_port"]  # 0: any that is free
    return ["torchrun", *_torchrun_options(configuration, port), *command], environment


def _torchrun_options(configuration: Mapping[str, Any], port: int) -> list[str]:
    """Return the options of torchrun: how many processes start here, and where those of all machines meet."""
    machines = configuration["num_machines"]
    count = f"--nproc-per-node={configuration['num_processes'] // machines}"
    if machines == 1:  # given the address, the name of this machine is not resolved
        return [f"--master-port={port}" if port else "--standalone", "--local-addr=127.0.0.1", count]
    rank, host = configuration["machine_rank"], configuration["main_process_ip"]
    return [f"--nnodes={machines}", f"--node-rank={rank}", f"--master-addr={host}", f"--master-port={port}", count]


def _torchrun(arguments: Sequence[str], signals: ForwardedSignals) -> int:
    """Run torchrun and return the exit status of the script; negative for the signal that ended it."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic.multiprocessing.api").addFilter(
        lambda record: not str(record.msg).startswith(_SAID_BY_TORCHRUN)
    )
    with tempfile.TemporaryDirectory(prefix="accmt-") as folder:  # torchrun's own would stay behind
        own = [f"--log-dir={folder}", f"--signals-to-handle={_LEFT_TO_TORCHRUN}"]
        try:
            run.run(run.parse_args([*own, *arguments]))  # type: ignore[no-untyped-call]
        except ChildFailedError as error:
            return _outcome({rank: error.failures[rank] for rank in sorted(error.failures)}, signals)
    return 0


def _outcome(failures: Mapping[int, Any], signals: ForwardedSignals) -> int:
    """Return the exit status of the script, and report which ranks failed unless they were asked to end."""
    first = min(failure.timestamp for failure in failures.values())
    # Torchrun ends the other ranks by SIGTERM, 30 seconds later by SIGKILL; its clock has a resolution of seconds.
    early = {rank: failure.exitcode for rank, failure in failures.items() if failure.timestamp <= first + 1}
    asked = [signal.SIGTERM, *(_ENDING if signals.asked else ()), *([signal.SIGKILL] if signals.times > 2 else ())]
    by_themselves = {rank: code for rank, code in early.items() if -code not in asked}
    if signals.asked and not by_themselves:
        return -signals.asked
    causes: dict[int, int] = by_themselves or early
    complain(f"accmt launch: {', '.join(_in_words(rank, code) for rank, code in causes.items())}")
    return next(iter(causes.values()))


def _in_words(rank: int, code: int) -> str:
    if code >= 0:
        return f"rank {rank} ended with status {code}"
    names = {number.value: number.name for number in signal.Signals}  # real-time signals have no names
    return f"rank {rank} was ended by {names.get(-code, f'signal {-code}')}"


def _lives(pid: int) -> bool:
    """Return whether a process is alive; one that ended stays a zombie until its parent reaps it."""
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def _await(ranks: Sequence[int]) -> None:
    """Wait until all ranks have ended. Torchrun is blocked until then; it would kill the rest on the first exit."""
    until = None
    while (living := sum(map(_lives, ranks))) and (until is None or time.monotonic() < until):
        if until is None and living < len(ranks):
            until = time.monotonic() + _PATIENCE
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

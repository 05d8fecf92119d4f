"""Processes that start in milliseconds: a server that has imported everything forks one for each call of a function.

The side of the tests is `Forks`. Its server answers each line with another, in JSON: to
`{"call": "train", "arguments": {...}, "log": "..."}` with the id of a child that calls this function of the module, to
`{"wait": 123}` with its exit code, negative for the signal that ended it, to `{"clear": 123}` when all that this child
forked has ended too. Nothing is called in the server itself, so that each child starts as a fresh process does.

Servers are forked as well, so that only `python forks.py SOCKET`, their `Source`, imports torch. Those who connect to
the socket have a server of their own, and say first which module it is for. All workers of pytest-xdist use the
sources of the process that starts them. They end when it does.

A child that has ended stays a zombie as long as something that it forked lives: nobody else can have its number, and
signals to its group reach no strangers.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

_SETTLED = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
_LONGEST = 600
_SHOWN = 3000
_CAN_BE_FORKED = {"jemalloc_bg_thd"}  # that of pyarrow's allocator, which starts it again in a child
_SLOW = (
    "lark",
    "optuna",
    "torch._dynamo",  # imported by every training
    "torch.distributed.checkpoint",
    "torch.distributed.launcher.api",
    "torch.utils.tensorboard",
    "torchmetrics",
    "transformers.modeling_utils",  # looked for by every training, because torchmetrics imports transformers
)


class Child:
    """A training in a process of its own, which is the leader of its group."""

    def __init__(self, forks: Forks, pid: int, log: Path) -> None:
        self._forks = forks
        self._handle = os.pidfd_open(pid)
        self.pid = pid
        self.log = log
        self.code: int | None = None

    def is_running(self) -> bool:
        return self.code is None and not select.select([self._handle], [], [], 0)[0]

    def kill(self) -> None:
        """SIGKILL for this process alone, as soon as it is asked for; what it forked lives on."""
        signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def terminate(self) -> None:
        signal.pidfd_send_signal(self._handle, signal.SIGTERM)

    def end(self) -> int:
        """Wait for its end, and give its exit code, negative for a signal. One that does not end is an error."""
        if self.code is None:
            hangs = not select.select([self._handle], [], [], _LONGEST)[0]
            if hangs:
                self.kill()
            self.code = self._forks.ask(wait=self.pid)
            os.close(self._handle)
            assert not hangs, f"hung for {_LONGEST} s:\n{self.printed()[-_SHOWN:]}"
        return self.code

    def end_well(self) -> None:
        """Wait for its end, which has to be a good one."""
        code = self.end()
        assert code == 0, f"ended with {code}:\n{self.printed()[-_SHOWN:]}"

    def printed(self) -> str:
        """What it wrote, and the warnings it gave."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def group(self) -> list[int]:
        """The processes that it forked and that are there, also after its end."""
        return _others_in(self.pid)

    def clear(self) -> None:
        """End it and all that it forked."""
        self._forks.ask(clear=self.pid)


class Forks:
    """A server for a module, forked when it is made, and ended by `close` with all that it forked.

    Args:
        module: The file with the functions that are called.
        *preload: Other modules that it imports first.
        source: The source that forks it, 0 or 1: those of the other have other hashes of texts.
    """

    def __init__(self, module: Path, *preload: str, source: int = 0) -> None:
        self._server = socket.socket(socket.AF_UNIX)
        self._server.connect(source_of_servers(source))
        self._lines = self._server.makefile("rw", buffering=1, encoding="utf-8")
        given = {"module": str(module), "preload": preload, "environment": dict(os.environ), "folder": str(Path.cwd())}
        self._lines.write(json.dumps(given) + "\n")

    def start(self, function: str, log: Path, **arguments: Any) -> Child:
        """Call a function of the module in a new process."""
        return Child(self, self.ask(call=function, arguments=arguments, log=str(log)), log)

    def ask(self, **request: Any) -> int:
        self._lines.write(json.dumps(request) + "\n")
        return int(self._lines.readline())

    def wait_until_ready(self) -> None:
        """Wait until it has imported everything."""
        self.ask(ready=True)

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_WR)
        self._lines.read()
        self._lines.close()
        self._server.close()


@functools.cache
def source_of_servers(number: int) -> str:
    """The socket of one of two processes that fork servers, started unless the process that started this one has."""
    name = f"ACCMT_TESTS_SOURCE_{number}"
    if name not in os.environ:
        folder = Path(tempfile.mkdtemp(prefix="accmt-source-"))
        os.environ[name] = str(folder / "socket")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.environ[name])
            listener.listen(64)
            process = subprocess.Popen(
                [sys.executable, __file__, str(listener.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        atexit.register(process.communicate)
    return os.environ[name]


def _fork_servers(listener: socket.socket) -> None:
    """Fork a server for each that connects, until the process of the tests ends."""
    import accmt
    from accmt.rules import parse_saving

    assert accmt.Trainer, "imported lazily"
    parse_saving("best_accuracy")  # makes the parser, which takes as long as a small training
    for name in _SLOW:
        with suppress(ImportError):
            importlib.import_module(name)
    servers: list[int] = []
    while 0 not in (ready := select.select([0, listener], [], [])[0]):
        assert ready == [listener]
        connection, _ = listener.accept()
        servers = [server for server in servers if os.waitpid(server, os.WNOHANG)[0] == 0]
        _check_threads()
        servers.append(os.fork())
        if servers[-1] == 0:
            listener.close()
            for descriptor in (0, 1):
                os.dup2(connection.fileno(), descriptor)
            connection.close()
            _serve(**json.loads(sys.stdin.readline()))
            os._exit(0)
        connection.close()
    for server in servers:
        os.waitpid(server, 0)


def _check_threads() -> None:
    threads = {(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()}
    assert len(threads - _CAN_BE_FORKED) <= 1, f"a process with the threads {threads} cannot be forked safely"


def _serve(module: str, preload: list[str], environment: dict[str, str], folder: str) -> None:
    """Answer until there is nothing more to read, then end the children that are left."""
    import torch

    os.environ.clear()
    os.environ |= {**environment, **_SETTLED}
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read where DeepSpeed is imported
    os.chdir(folder)
    os.fsync = os.fstat  # only a power cut loses what was written, and waiting for disks takes longer than a training
    sys.path.insert(0, str(Path(module).parent))
    called, *_ = map(importlib.import_module, (Path(module).stem, *preload))
    torch.set_num_threads(1)
    _check_threads()
    gc.freeze()
    children: set[int] = set()
    for line in sys.stdin:
        match json.loads(line):
            case {"wait": child}:
                answer = _code_of(child)
                if not _others_in(child):
                    _reap(child, children)
            case {"ready": True}:
                answer = 0
            case {"clear": child}:
                answer = 0
                if child in children:
                    _kill_group(child)
                    _reap(child, children)
            case {"call": name, "arguments": arguments, "log": log}:
                answer = os.fork()
                if answer == 0:
                    _become(getattr(called, name), arguments, log)
                children.add(answer)
        print(answer, flush=True)  # noqa: T201  (the answer)
    for child in children:
        _kill_group(child)


def _kill_group(child: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)


def _code_of(child: int) -> int:
    """Wait for the end of a child, and leave it as a zombie."""
    ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def _reap(child: int, children: set[int]) -> None:
    os.waitpid(child, 0)
    children.discard(child)


def _others_in(group: int) -> list[int]:
    """The processes of a group, without its leader, that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, number = path.read_text().rpartition(")")[2].split()[:3]
            if int(number) == group != int(path.parent.name) and state != "Z":
                found.append(int(path.parent.name))
    return found


def _become(function: Any, arguments: dict[str, Any], log: str) -> None:
    """Be a child: call the function, and end."""
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    code = 1
    try:
        function(**arguments)
        code = 0
    except BaseException:
        with suppress(OSError):
            traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    os.environ |= _SETTLED
    _fork_servers(socket.socket(fileno=int(sys.argv[1])))

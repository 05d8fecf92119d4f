"""Programs in processes of their own, one or several that train together, without the seconds that torch is imported.

    ran = launch(SCRIPT, folder, "seed=7", processes=2)
    ran.check()

does what `torchrun --nproc_per_node 2 SCRIPT folder seed=7` does, in processes that warm servers fork: with the same
variables in the environment, a store to meet in, and all ended when one of them fails. Two servers take turns, so
that ranks have other hashes of texts than their neighbours, as with torchrun. What torchrun itself does (agents,
restarts, several machines), and what an import does, is tested with real interpreters.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forks import Child, Forks

PROGRAMS = Path(__file__).with_name("programs.py")
_GRACE = 120
_PATIENCE = 600  # for what takes seconds on a machine that does nothing else
_TICK = 0.01
_LOGS = Path(tempfile.mkdtemp(prefix="accmt-launched-"))
_numbers = itertools.count()
atexit.register(shutil.rmtree, _LOGS, ignore_errors=True)


@dataclass(frozen=True)
class Ran:
    """What processes ended with: 0, or the code of the one that failed first, and what all of them wrote."""

    returncode: int
    stdout: str
    stderr: str

    def check(self) -> Ran:
        """Fail with what was written if a process failed."""
        assert self.returncode == 0, f"ended with {self.returncode}:\n{self.stdout}\n{self.stderr}"
        return self


class Running:
    """Processes that were started. At the end of a `with` block they are killed, with all that they forked."""

    def __init__(self, children: list[Child], out: Path, err: Path, ranks: _Ranks) -> None:
        self._children = children
        self._out, self._err = out, err
        self._ranks = ranks  # holds the store

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for child in self._children:
            child.end()
            child.clear()

    def is_running(self) -> bool:
        return any(child.is_running() for child in self._children)

    def kill(self) -> None:
        """Send SIGKILL to those that still run."""
        for child in self._children:
            if child.is_running():
                child.kill()

    def send_to_all(self, number: int) -> None:
        """Send a signal to them and to what they forked."""
        for child in self._children:
            os.killpg(child.pid, number)

    def wait_for(self, text: str, seconds: float = _PATIENCE) -> None:
        """Wait until they have written this to stdout."""
        until = time.monotonic() + seconds
        while text not in self._out.read_text(errors="replace"):
            assert time.monotonic() < until, f"{text!r} is not written after {seconds} s:\n{self._written()}"
            time.sleep(_TICK)

    def end(self, timeout: float = _PATIENCE) -> Ran:
        """Wait for all; the first code that is not 0 ends the others, at first gently."""
        until, failed, hung = time.monotonic() + timeout, 0, False
        running = list(self._children)
        while running:
            ended = [child for child in running if not child.is_running()]
            running = [child for child in running if child not in ended]
            codes = [child.end() for child in ended]
            if not failed and any(codes):
                failed = next(code for code in codes if code)
                until = min(until, time.monotonic() + _GRACE)
                for child in running:
                    child.terminate()
            if time.monotonic() > until:
                hung = not failed
                for child in running:
                    child.kill()
            time.sleep(_TICK)
        assert not hung, f"not ended after {timeout} s:\n{self._written()}"
        return Ran(failed, *(file.read_text(errors="replace") for file in (self._out, self._err)))

    def _written(self) -> str:
        return "\n".join(file.read_text(errors="replace") for file in (self._out, self._err))


def launch(program: Path | str, *arguments: object, timeout: float = _PATIENCE, **given: Any) -> Ran:
    """Run a program to its end, at most so many seconds: see `start`."""
    with start(program, *arguments, **given) as running:
        return running.end(timeout)


def start(
    program: Path | str,
    *arguments: object,
    processes: int | None = None,
    folder: Path | None = None,
    environment: Mapping[str, str | None] | None = None,
    preload: tuple[str, ...] = (),
    server: int = 0,
) -> Running:
    """Start a program.

    Args:
        program: A file, or the text of a program.
        *arguments: What it finds in sys.argv, as text.
        processes: How many train together, as of torchrun; by default there is one, as of python.
        folder: The working directory; that of the tests by default.
        environment: Variables besides those of the tests; None takes one away.
        preload: Modules that are slow to import, which servers of their own have imported.
        server: The one of the first process, 0 or 1: those of the other have other hashes of texts.
    """
    place = _LOGS / str(next(_numbers))
    place.mkdir(parents=True)
    source = program
    if isinstance(program, str):
        source = place / "program.py"
        source.write_text(program)
    out, err = place / "out", place / "err"
    for file in (out, err):
        file.touch()
    ranks = _Ranks(processes)
    given: dict[str, Any] = {"program": str(Path(source).resolve()), "arguments": [str(each) for each in arguments]}
    given |= {"folder": str(folder or Path.cwd()), "out": str(out), "err": str(err)}
    variables = {**os.environ, "ACCELERATE_USE_CPU": "true", **(environment or {})}
    kept = {name: value for name, value in variables.items() if value is not None}
    servers = [_server((server + rank) % 2, preload) for rank in range(processes or 1)]
    for each in servers:
        each.wait_until_ready()  # or the first process would wait for the others while they import
    children = []
    for rank, each in enumerate(servers):
        given["environment"] = {**kept, **ranks.environment(rank)}
        children.append(each.start("run", err, **given))
    return Running(children, out, err, ranks)


class _Ranks:
    """The store in which processes meet: in the process of the tests, so that no test can take the port of another."""

    def __init__(self, processes: int | None) -> None:
        from torch.distributed import TCPStore

        self._processes = processes
        self._store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False) if processes else None

    def environment(self, rank: int) -> dict[str, str]:
        if self._store is None:
            return {}
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self._processes, "LOCAL_WORLD_SIZE": self._processes}
        own |= {"GROUP_RANK": 0, "GROUP_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self._store.port}
        return {name: str(value) for name, value in own.items()} | {"TORCHELASTIC_USE_AGENT_STORE": "True"}


@functools.cache
def _server(number: int, preload: tuple[str, ...]) -> Forks:
    """Each started when the first test needs it, and ended with the process of the tests."""
    server = Forks(PROGRAMS, *preload, source=number)
    atexit.register(server.close)
    return server

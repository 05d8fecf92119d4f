"""Trials whose training is disturbed from inside, and that may have several processes: see disturbed.py."""

from __future__ import annotations

import atexit
import functools
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from forks import Child, Forks
from torch.distributed import TCPStore
from trials import CHECKPOINT, HERE, Trial

SCRIPT = HERE / "disturbed.py"
SOON = 300  # even where much else runs; torch waits for half an hour
_SHOWN = 1_500


@functools.cache
def disturbed_forks() -> Forks:
    """The server of disturbed.py, started when the first test needs it."""
    server = Forks(SCRIPT)
    atexit.register(server.close)
    return server


class Launch:
    """The processes of one start, by their rank. At the end of a `with` block they are ended, with all they forked."""

    def __init__(self, children: list[Child], store: TCPStore | None = None) -> None:
        self.children = children
        self._store = store

    def __enter__(self) -> Launch:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.children:
            if child.is_running():
                child.kill()
            child.end()
            child.clear()

    def ends(self, *ranks: int, within: float = SOON) -> list[int]:
        """Wait for the end of all processes, or of some, and give their exit codes. One that stays is an error."""
        children = [self.children[rank] for rank in ranks] or self.children
        wait_until(lambda: not any(child.is_running() for child in children), within, self.shown)
        return [child.end() for child in children]

    def printed(self) -> str:
        return "\n".join(child.printed() for child in self.children)

    def shown(self) -> str:
        """The last of what each wrote, for messages."""
        return "\n".join(child.printed()[-_SHOWN:] for child in self.children)


class Disturbed(Trial):
    """A training that is disturbed, of one process or several."""

    def __init__(self, folder: Path, world: int = 1, **arguments: Any) -> None:
        super().__init__(disturbed_forks(), folder, **arguments)
        self.world = world

    def launch(self, *faults: dict[str, Any], timeout: float | None = None, **arguments: Any) -> Launch:
        """Start, or go on, in new processes."""
        if self.world == 1:
            return Launch([self.start(*faults, **arguments)])
        store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
        patience = {} if timeout is None else {"timeout": timeout}
        settled = self._settled(faults, arguments)
        starts = [{"rank": rank, "world": self.world, "port": store.port, **patience} for rank in range(self.world)]
        return Launch([self._forks.start("train", self._log(), **settled, ranks=ranks) for ranks in starts], store)

    def launch_elastic(self, *faults: dict[str, Any], restarts: int = 0, **arguments: Any) -> Launch:
        """Start two processes as torchrun does: the one process of the launch is its agent."""
        settled = self._settled(faults, arguments)
        return Launch([self._forks.start("launch", self._log(), restarts=restarts, **settled)])

    def torchrun(self, *faults: dict[str, Any], restarts: int = 0, **arguments: Any) -> subprocess.Popen[str]:
        """The real one."""
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", f"--max-restarts={restarts}"]
        return self.in_interpreter(command, *faults, **arguments)

    def in_interpreter(
        self, command: Sequence[str], *faults: dict[str, Any], **arguments: Any
    ) -> subprocess.Popen[str]:
        """Start in an interpreter of its own, behind a command for it, as the first process of a session."""
        settled = json.dumps(self._settled(faults, arguments))
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        with self._log().open("w") as log:
            return subprocess.Popen(
                [sys.executable, *command, str(SCRIPT), settled],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
                text=True,
            )

    def log(self) -> str:
        """What the processes of the last start wrote."""
        return (self.folder / f"log-{self._starts}").read_text(errors="replace")

    def goes_on(self, **arguments: Any) -> list[Any]:
        """Start, or go on, to the end, and give what each process ended with."""
        with self.launch(**arguments) as launch:
            codes = launch.ends()
            self.printed = launch.printed()
            assert codes == [0] * self.world, f"ended with {codes}:\n{launch.shown()}"
        return self.endings()

    def endings(self) -> list[Any]:
        """What each process of the last training ended with."""
        names = ["ending.json", *(f"ending.{rank}.json" for rank in range(1, self.world))]
        return [json.loads((self.folder / name).read_text())["outcome"] for name in names]

    def noted(self, **wanted: Any) -> list[dict[str, Any]]:
        """What happened in all processes so far, in order; only what has these values, if some are given."""
        path = self.folder / "noted.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [line for line in lines if wanted.items() <= line.items()]

    def wait_for(self, count: int = 1, **wanted: Any) -> None:
        """Wait until this has happened so often."""
        wait_until(lambda: len(self.noted(**wanted)) >= count, SOON, lambda: f"{wanted} in {self.noted()}")

    def steps_there(self) -> list[int]:
        """At which steps the checkpoints that are there were made."""
        found = (CHECKPOINT.fullmatch(path.name) for path in self.checkpoints.glob("*"))
        return sorted(int(match[2]) for match in found if match)


def wait_until(condition: Callable[[], bool], seconds: float, told: Callable[[], str]) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not after {seconds} s:\n{told()}"
        time.sleep(0.002)


def endings_in(folder: Path) -> Callable[..., list[Any]]:
    """Arguments of the training -> what each process ends with if nothing happens to it; each is trained once."""
    known: dict[str, list[Any]] = {}
    trial = trials_in(folder)

    def endings(**arguments: Any) -> list[Any]:
        key = json.dumps(arguments, sort_keys=True)
        if key not in known:
            known[key] = trial(**arguments).goes_on()
        return known[key]

    return endings


def trials_in(folder: Path) -> Callable[..., Disturbed]:
    """Arguments of the training -> a new trial below a folder."""
    numbers = itertools.count()
    return lambda **arguments: Disturbed(folder / str(next(numbers)), **arguments)

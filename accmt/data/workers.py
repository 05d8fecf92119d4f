"""Processes that load batches: how they handle signals, and whether they can be started.

SIGTERM to all processes of a training would end the workers first, and with them the training, before it has made its
checkpoint. A worker that is not forked runs the script of the training again, and must not train.
"""

from __future__ import annotations

import ast
import copy
import inspect
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import cache, partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from accmt.config.errors import ConfigError, Problem
from accmt.data.watch import Watch

# Maximum time in seconds that a worker asked to end waits for the end of its training.
_PATIENCE = 60.0
ADVICE = (
    'Put the training code below `if __name__ == "__main__":`, because a process that is not forked runs the script '
    "from its first line; or load without workers (dataloader_num_workers=0)"
)


def outlast_signals(loader: DataLoader[Any]) -> None:
    """Let the workers of a loader survive SIGTERM, as long as their training may still need them.

    They ignore SIGUSR1. They end with their loader; with the process of the training, which sends them SIGTERM as well;
    or on their own if neither ends within a minute. On Windows, no signal reaches a process with its children.
    """
    if not loader.num_workers:
        return
    _check_guard(loader)
    if sys.platform == "win32":
        return
    loader.worker_init_fn = partial(_begin, _end_of(os.getpid()), loader.worker_init_fn)
    context = loader.multiprocessing_context or multiprocessing.get_context()
    if type(context) in _HOLDING:
        context = copy.copy(context)
        vars(context)["Process"] = _HOLDING[type(context)]
    loader.multiprocessing_context = context


if sys.platform != "win32":
    from multiprocessing.context import ForkContext, ForkProcess, SpawnContext, SpawnProcess

    _HELD = (signal.SIGTERM, signal.SIGUSR1)

    class _Holding:
        """Worker that blocks signals until it can handle them: before that, torch lets SIGTERM end it."""

        def start(self) -> None:
            former = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)  # the new process inherits it
            try:
                super().start()  # type: ignore[misc]
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, former)

    class _Forked(_Holding, ForkProcess): ...

    class _Spawned(_Holding, SpawnProcess): ...

    # A fork server does not pass on blocked signals: its workers keep the gap.
    _HOLDING = {ForkContext: _Forked, SpawnContext: _Spawned}


@cache
def _end_of(process: int) -> Connection:
    """Return a connection that becomes readable when this process ends, before it asks its children to end and
    waits."""
    reader, writer = Pipe(duplex=False)
    Finalize(None, writer.send_bytes, args=(b"ends",), exitpriority=100)
    return reader


def _begin(end: Connection, first: Callable[[int], None] | None, worker: int) -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, partial(_end_later, end))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
    if first is not None:
        first(worker)


def _end_later(end: Connection, number: int, frame: Any) -> None:
    Watch.is_ending = True
    threading.Thread(target=_wait_and_end, args=(end, 128 + number), daemon=True).start()


def _wait_and_end(end: Connection, code: int) -> None:
    end.poll(_PATIENCE)  # never read, so that all workers see it
    os._exit(code)


def main_is_unguarded() -> bool:
    """Return whether a process that is not forked would train too: it runs the script again, and the code that trains
    is not below an `if __name__ == "__main__":`."""
    main = sys.modules.get("__main__")
    frame, script = inspect.currentframe(), getattr(main, "__file__", None)
    while frame is not None and not (frame.f_code.co_name == "<module>" and frame.f_globals is vars(main)):
        frame = frame.f_back
    name = getattr(getattr(main, "__spec__", None), "name", "")
    if frame is None or script is None or name.endswith("__main__"):
        return False  # there is no script to run again
    try:
        statements = ast.parse(Path(script).read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return False
    # An `if` before, such as `if __name__ != "__main__": raise SystemExit`, may guard all that follows.
    until = [statement for statement in statements if statement.lineno <= frame.f_lineno]
    return not any(isinstance(statement, ast.If) and _asks(statement.test) for statement in until)


def forks(loader: DataLoader[Any] | None = None) -> bool:
    """Return whether workers are forked, those of a loader or by default."""
    context = None if loader is None else loader.multiprocessing_context
    default = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    return (default if context is None else context.get_start_method()) == "fork"


def refuse_run_again() -> None:
    """Exit from a process that was started to load data but would train, as it runs the training script again.

    Raises:
        SystemExit: This is such a process.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__mp_main__":
            raise SystemExit(f"a process that loads data runs the script of the training again. {ADVICE}")
        frame = frame.f_back


def _asks(test: ast.expr) -> bool:
    """Return whether a condition checks which process this is."""
    names = {node.id for node in ast.walk(test) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(test) if isinstance(node, ast.Attribute)}
    return bool(names & {"__name__", "parent_process", "current_process"})


def _check_guard(loader: DataLoader[Any]) -> None:
    if forks(loader) or not main_is_unguarded():
        return
    text = f"the {loader.num_workers} worker(s) of a loader would run the script of the training again. {ADVICE}"
    raise ConfigError([Problem("dataloader_num_workers", text)], "the loading of data")

"""Python programs in processes that a server forks, so that none has to import torch again: see launching.py."""

from __future__ import annotations

import atexit
import os
import random
import signal
import sys
import tempfile
import threading
import types
from pathlib import Path

import numpy as np
import torch


def run(program: str, arguments: list[str], environment: dict[str, str], folder: str, out: str, err: str) -> None:
    """Run a file as `python FILE ARGUMENTS` does: a main module, an environment and random states of its own."""
    for path, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.chdir(folder)
    if (paths := sys.modules.get("accmt.files.paths")) is not None:
        paths._STARTED = Path(folder)
    os.environ.clear()
    os.environ |= environment
    tempfile.tempdir = None
    random.seed()
    np.random.seed()
    torch.seed()
    main = types.ModuleType("__main__")
    main.__file__ = program
    sys.modules["__main__"] = main
    sys.argv = [program, *arguments]
    sys.path[0] = str(Path(program).parent)
    code, interrupted = 0, False
    try:
        exec(compile(Path(program).read_bytes(), program, "exec"), main.__dict__)
    except SystemExit as end:
        code = _code_of(end)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
        interrupted = type(error) is KeyboardInterrupt
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if interrupted:  # the interpreter ends by the signal then
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    os._exit(code)


def _code_of(end: SystemExit) -> int:
    """What the interpreter makes of it."""
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    print(end.code, file=sys.stderr)  # noqa: T201  (as the interpreter does)
    return 1

"""A check that all processes see the same folder: all write a checkpoint, and one publishes it."""

from __future__ import annotations

import time
import uuid
from contextlib import suppress
from functools import partial
from pathlib import Path

from accelerate import PartialState

from accmt.distributed.collective import everywhere, on_main
from accmt.rules.reserved_names import TEMPORARY

# Network file systems show the files of another machine with a delay.
_PATIENCE = 3.0
_PAUSE = 0.05


def require_shared(folder: Path) -> None:
    """Check that a folder is the same on every process.

    Raises:
        Failed: On every process; another machine has a different folder at this path, or none.
    """
    if PartialState().num_processes == 1:
        return
    mark = folder / on_main(partial(_made_in, folder))
    try:
        everywhere(partial(_see, mark))
    finally:
        if PartialState().is_main_process:
            with suppress(OSError):
                mark.unlink()


def _made_in(folder: Path) -> str:
    """Create a file in a folder and return its name."""
    name = f"{TEMPORARY}shared-{uuid.uuid4().hex[:12]}"
    (folder / name).touch()
    return name


def _see(mark: Path) -> None:
    until = time.monotonic() + _PATIENCE
    while not mark.exists():
        if time.monotonic() > until:
            raise FileNotFoundError(f"{mark.parent} is a different folder there: several machines need a shared one")
        time.sleep(_PAUSE)

"""Messages through the store of the process group, for when not all processes may come to a collective; and the choice
of the error to show when several of them fail: only the first one.

When a process fails, the others fail a moment later, because it no longer answers. Their errors add nothing to the
first one, so they exit with status 1 and print nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from itertools import count
from threading import Thread
from typing import TypeVar

from accelerate import PartialState
from torch import distributed as dist
from torch.distributed.distributed_c10d import Store

from accmt._compat import default_store
from accmt.distributed.collective import Failed

_T = TypeVar("_T")
_numbers = count(1)
_PATIENCE = timedelta(seconds=2)
_OF_BACKENDS = re.compile(r"gloo|nccl|connection (closed|reset|refused)|timed? ?out", re.IGNORECASE)
_NOTE = "another process of this training has ended, or has not answered within the time limit: its output may say why"


class Meeting:
    """Texts that the processes tell each other about one topic; no call waits longer than its timeout.

    Raises:
        ValueError: The process group is not initialized.
    """

    def __init__(self, topic: str) -> None:
        state = PartialState()
        self._store = default_store()
        self._keys = [f"accmt/{topic}/{rank}" for rank in range(state.num_processes)]
        self._own = self._keys[state.process_index]

    def tell(self, text: str) -> None:
        """Tell the others a text, replacing an earlier one."""
        self._store.set(self._own, text)

    def told(self, patience: timedelta) -> list[str] | None:
        """Return what all processes tell, in rank order; None if one tells nothing within the timeout, or has ended."""
        try:
            self._store.wait(self._keys, patience)
            return [text.decode() for text in self._store.multi_get(self._keys)]
        except RuntimeError:
            return None


class PeerFailed(SystemExit):
    """Exit, because another process failed first and shows its error; if not caught, with status 1."""

    def __init__(self) -> None:
        super().__init__(1)


class Failures:
    """Failures of one training's processes; trainings are numbered to keep their keys in the store apart."""

    def __init__(self) -> None:
        number = next(_numbers)
        self._own, self._others = f"accmt/{number}/failed", f"accmt/{number}/others"

    def show_first(self, error: BaseException) -> None:
        """Tell the other processes that this one failed, unless one of them failed first.

        Raises:
            PeerFailed: Another one did, and this error is only a consequence.
        """
        if not dist.is_initialized() or PartialState().num_processes == 1:
            return
        store = default_store()
        if not _follows(error):
            _asked(lambda: store.set(self._own, ""))
            return
        # If no process reports its own error, one was killed or stopped: one of the others shows that.
        if _asked(lambda: self._is_told(store) or store.add(self._others, 1) > 1):
            raise PeerFailed from None
        if not isinstance(error, Failed):
            error.add_note(_NOTE)

    def _is_told(self, store: Store) -> bool:
        """Return whether a process reports its own error, now or soon."""
        try:
            store.wait([self._own], _PATIENCE)
        except RuntimeError:
            return False
        return True


def _asked(question: Callable[[], _T]) -> _T | None:
    """Return the store's answer; None if it does not answer, because its process is gone or cannot be reached."""
    answers: list[_T] = []

    def ask() -> None:
        with suppress(RuntimeError):
            answers.append(question())

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(2 * _PATIENCE.total_seconds())
    return answers[0] if answers else None


def _follows(error: BaseException) -> bool:
    """Return whether an error can be the consequence of a failure in another process."""
    if isinstance(error, Failed):
        return error.__cause__ is None
    return isinstance(error, RuntimeError) and _OF_BACKENDS.search(str(error)) is not None

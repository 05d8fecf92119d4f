"""Workers that outlive a pass over the data, as long as they are what new ones would be.

A new worker starts with the objects as they are in this process. So workers are kept only if these have not changed,
and those in no worker either: each looks after the last batch of a pass, and reports with it.
"""

from __future__ import annotations

from typing import Any

from accmt.data.fingerprint import fingerprint

# Starts of workers that follow a change. Data that change in each pass are not looked at any longer.
_STARTS = 3


class Watch:
    """Objects that workers start with, in this process or in a worker.

    Args:
        values: The objects.
    """

    # In a worker: the batch that it loads now is its last of a pass.
    is_last = False

    def __init__(self, *values: Any) -> None:
        self._values = values
        self._then: int | None = None
        self._starts = 0

    def begin(self) -> bool:
        """Note what workers start with; return whether they may be kept."""
        self._starts += 1
        self._then = fingerprint(*self._values) if self._starts <= _STARTS else None
        return self._then is not None

    def begin_worker(self, worker: int) -> None:
        """Note what this worker starts with."""
        if self._then is not None:
            self._then = fingerprint(*self._values)

    def is_same(self) -> bool:
        """Return whether nothing has changed since."""
        return self._then is not None and fingerprint(*self._values) == self._then

    def report(self) -> bool:
        """Return true from a worker with the last batch of a pass, if nothing has changed there."""
        return Watch.is_last and self.is_same()

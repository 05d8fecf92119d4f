"""Messages between processes through the store of their group, for when not all of them may come to a collective."""

from __future__ import annotations

from datetime import timedelta

from accelerate import PartialState

from accmt._compat import default_store


class Meeting:
    """Texts that the processes tell each other about one topic; no call waits longer than its timeout.

    Raises:
        ValueError: There is no process group.
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

"""Stateful parts: a training, as a checkpoint sees it, is a set of them.

Parts that all processes share have one state, which the main process writes as JSON. Parts of each process have a state
on every process, of plain data and tensors. A checkpoint is restored in two passes: every part checks its state, and
only if all fit, each restores it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Mismatch(RuntimeError):
    """A checkpoint belongs to another training."""


class Stateful(Protocol):
    """Part of a training with its own state."""

    def state_dict(self) -> Any:
        """Return the state."""
        ...

    def check(self, state: Any) -> None:
        """Check that a state fits, and change nothing.

        Raises:
            ValueError, KeyError, TypeError: It is not a state of such a part.
            Mismatch: It belongs to another training.
        """
        ...

    def load_state_dict(self, state: Any) -> Sequence[str]:
        """Restore a state that fits, and return what differs from the time when it was taken, one line each."""
        ...


@dataclass(frozen=True, slots=True)
class StatefulParts:
    """Parts of a training besides its model and optimizer.

    Attributes:
        shared: Name -> part that is the same on all processes.
        ranked: Name -> part of which each process has its own.
    """

    shared: Mapping[str, Stateful]
    ranked: Mapping[str, Stateful]

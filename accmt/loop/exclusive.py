"""One training at a time in a process.

Two of them would share what a process has once: the random state, the state of Accelerate, the process group, and the
handlers of signals. Each would change the results of the other. So a second one is refused before it touches anything.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from accmt.loop.evaluate import Evaluation

Kind = Literal["fit", "evaluate", "optimize"]

_NAMES: dict[Kind, str] = {"fit": "a training", "evaluate": "an evaluation", "optimize": "a search"}
_MAY_HOLD: set[tuple[Kind, Kind]] = {("optimize", "fit"), ("optimize", "evaluate"), ("fit", "evaluate")}


class Busy(RuntimeError):
    """Something runs in this process that does not allow what was called; nothing was touched."""


@dataclass(slots=True)
class Activity:
    """Something that has the process for itself.

    Attributes:
        kind: The method that was called.
        evaluation: How the module of a training is evaluated, once the training is assembled.
        is_evaluating: Whether an evaluation of the training is under way.
    """

    kind: Kind
    evaluation: Evaluation | None = None
    is_evaluating: bool = False
    thread: threading.Thread = field(default_factory=threading.current_thread)


_running: list[Activity] = []
_mutex = threading.Lock()


def _forget() -> None:
    """Free a forked child of what runs in its parent."""
    global _mutex  # another thread of the parent may hold it, and is not there to release it
    _mutex = threading.Lock()
    _running.clear()


os.register_at_fork(after_in_child=_forget)


@contextmanager
def exclusive(kind: Kind) -> Iterator[Activity | None]:
    """Have the process for a training, an evaluation or a search until the block ends, however it ends.

    A search may train and evaluate, and the callbacks of a training may evaluate, in the same thread.

    Yields:
        The training or search that this one is called in; None if there is none.

    Raises:
        Busy: Something else has it.
    """
    mine = Activity(kind)
    with _mutex:
        outer = _running[-1] if _running else None
        problem = None if outer is None else _problem(outer, mine)
        if problem is not None:
            raise Busy(f"{kind} cannot start: {problem}")
        _running.append(mine)
    try:
        yield outer
    finally:
        with _mutex:
            _running.remove(mine)


def lend(evaluation: Evaluation) -> None:
    """Tell how the training that runs is evaluated, so that its callbacks may evaluate as well."""
    for running in _running[-1:]:
        running.evaluation = evaluation


@contextmanager
def evaluating() -> Iterator[None]:
    """Let no other evaluation begin meanwhile."""
    running = _running[-1:]
    for activity in running:
        activity.is_evaluating = True
    try:
        yield
    finally:
        for activity in running:
            activity.is_evaluating = False


def _problem(outer: Activity, inner: Activity) -> str | None:
    """Why one cannot run while another does; None if it can."""
    name = _NAMES[outer.kind]
    if outer.thread is not inner.thread:
        return (
            f"{name} runs in another thread of this process ({outer.thread.name}), and they would share the random "
            f"state and the state of Accelerate. Wait for it to end, or use a process for each"
        )
    if outer.kind == inner.kind == "evaluate":
        return (
            "an evaluation has called it, for hooks are called in evaluations that a callback makes, too. "
            "Leave it out in those"
        )
    if (outer.kind, inner.kind) not in _MAY_HOLD:
        return (
            f"{name} is under way, which has called it (in a callback or a method of its module), and they would share "
            f"the random state and the state of Accelerate. Call it when {outer.kind} has returned, or in a process "
            f"of its own"
        )
    if outer.kind != "fit":
        return None
    if outer.evaluation is None:
        return "the training is being prepared. Call it in a callback, from on_fit_start on, or before fit"
    if outer.is_evaluating:
        return (
            "an evaluation of the training is under way, and they would share the state of metrics. "
            "Call it in on_evaluation_end, or in a hook outside of evaluations"
        )
    return None

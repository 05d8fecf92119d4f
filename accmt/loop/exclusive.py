"""One training at a time in a process.

Two would share what exists once per process: the random state, the state of Accelerate, the process group and the
signal handlers. Each would change the results of the other, so a second one is refused before it changes anything.
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

Kind = Literal["fit", "evaluate", "predict", "optimize", "rehearse", "find_lr"]

_NAMES: dict[Kind, str] = {
    "fit": "a training",
    "evaluate": "an evaluation",
    "predict": "a prediction",
    "optimize": "a search",
    "rehearse": "a rehearsal",
    "find_lr": "a learning rate range test",
}
_MAY_HOLD: set[tuple[Kind, Kind]] = {("optimize", "fit"), ("optimize", "evaluate"), ("fit", "evaluate")}
_MAY_HOLD |= {("optimize", "predict"), ("fit", "predict")}


class Busy(RuntimeError):
    """Call refused because of something that runs in this process; nothing was changed."""


@dataclass(slots=True)
class Activity:
    """Training, evaluation or search that occupies the process.

    Attributes:
        kind: The method that was called.
        evaluation: The evaluation of a training's module, once the training is assembled.
        is_evaluating: True while the training is being evaluated.
    """

    kind: Kind
    evaluation: Evaluation | None = None
    is_evaluating: bool = False
    thread: threading.Thread = field(default_factory=threading.current_thread)


_running: list[Activity] = []
_mutex = threading.Lock()


def _forget() -> None:
    """Clear, in a forked child, the activities of its parent."""
    global _mutex  # a thread of the parent may hold it, and does not exist here to release it
    _mutex = threading.Lock()
    _running.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextmanager
def exclusive(kind: Kind) -> Iterator[Activity | None]:
    """Reserve the process for a training, an evaluation or a search until the block ends, however it ends.

    A search may train and evaluate, and the callbacks of a training may evaluate, in the same thread.

    Yields:
        The enclosing training or search; None if there is none.

    Raises:
        Busy: Another activity occupies the process.
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
    """Register how the running training is evaluated, so that its callbacks may evaluate too."""
    for running in _running[-1:]:
        running.evaluation = evaluation


@contextmanager
def evaluating() -> Iterator[None]:
    """Prevent other evaluations from starting during the block."""
    running = _running[-1:]
    for activity in running:
        activity.is_evaluating = True
    try:
        yield
    finally:
        for activity in running:
            activity.is_evaluating = False


def _problem(outer: Activity, inner: Activity) -> str | None:
    """Return why one activity cannot run during another; None if it can."""
    name = _NAMES[outer.kind]
    if outer.thread is not inner.thread:
        return (
            f"{name} runs in another thread of this process ({outer.thread.name}), and the two would share the random "
            f"state and the state of Accelerate. Wait for it to end, or use a separate process for each"
        )
    if outer.kind == inner.kind == "evaluate":
        return (
            "it was called in an evaluation: hooks are also called in evaluations that a callback makes. Do "
            "not call it in those"
        )
    if (outer.kind, inner.kind) not in _MAY_HOLD:
        return (
            f"{name} is running and has called it (in a callback or a method of its module), and the two would share "
            f"the random state and the state of Accelerate. Call it when {outer.kind} has returned, or in a separate "
            f"process"
        )
    if outer.kind != "fit":
        return None
    if outer.evaluation is None:
        return "the training is being prepared. Call it in a callback, from on_fit_start on, or before fit"
    if outer.is_evaluating:
        return (
            "an evaluation of the training is running, and the two would share the state of metrics. "
            "Call it in on_evaluation_end, or in a hook outside of evaluations"
        )
    return None

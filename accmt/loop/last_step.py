"""The last complete step of a training, kept so that an exception in the next one can still end with a checkpoint.

A step changes weights and the optimizer's state only when the optimizer steps. Everything else it changes is small:
counters, random state, buffers, sums, the position in the data. That is recorded after each step and restored if the
next one fails. Once the optimizer has begun to step, the weights of the complete step are gone, and no checkpoint can
be made of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from functools import partial
from itertools import count
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn

from accmt._compat import version_of
from accmt.checkpoint.format import AVERAGE
from accmt.checkpoint.rng import random_state, set_random_state
from accmt.distributed.failures import Meeting
from accmt.loop.progress import COUNTERS
from accmt.loop.run import Run
from accmt.loop.stateful_parts import Reading

_numbers = count(1)
_PATIENCE = timedelta(seconds=5)


class Unknown(Exception):
    """Error: there is no complete step to make a checkpoint of; the message says why."""


@dataclass(slots=True)
class _Note:
    """State of a run after a step, except weights and optimizer state; `versions` show whether those have changed."""

    step: int
    is_settled: bool
    versions: list[int]
    undo: list[Callable[[], Any]]


class LastStep:
    """Recorder of the steps of a run, which can restore the run to the last complete one.

    Args:
        reading: The reading of the training data: it cannot be rewound, so its recorded state is kept for the
            checkpoint.
        is_on: An exception is to end with a checkpoint; otherwise nothing is recorded.
    """

    def __init__(self, reading: Reading, *, is_on: bool) -> None:
        self._reading = reading
        self._is_on = is_on
        self._number = next(_numbers)
        self._note: _Note | None = None
        self._engine: dict[str, Any] | None = None

    def note(self, run: Run, *, is_settled: bool) -> None:
        """Record a step, before or after (`is_settled`) the work due at it is done."""
        if not self._is_on:
            return
        if self._engine is None or is_settled:
            self._engine = run.engine.state()
        self._note = _Note(run.position.step, is_settled, list(_versions(run)), list(self._undo(run, self._engine)))

    def _undo(self, run: Run, engine: Mapping[str, Any]) -> Iterator[Callable[[], Any]]:
        """Yield functions that restore what a step changes."""
        position, records = run.position, run.records
        for thing, names in (
            (position, (*COUNTERS, "offset", "ended_epoch")),
            (run.state, [entry.name for entry in fields(run.state)]),
            *((journal, ["lines"]) for journal in records.journals),
        ):
            yield partial(vars(thing).update, {name: copy.copy(getattr(thing, name)) for name in names})
        yield partial(run.engine.restore, engine)
        yield partial(set_random_state, random_state(run.device), run.device)
        yield partial(_copy_back, run, {name: buffer.detach().clone() for name, buffer in _buffers(run)})
        gradients = {name: gradient.detach().clone() for name, gradient in run.stepper.gradients().items()}
        yield partial(run.stepper.put_back, gradients)
        for group in _optimizer(run).param_groups:
            yield partial(group.update, copy.deepcopy({k: v for k, v in group.items() if k != "params"}))
        for name, part in run.checkpointer.model.stateful.items():
            if name not in ("optimizer", AVERAGE):  # which change with the weights; scheduler and scaler are small
                yield partial(part.load_state_dict, copy.deepcopy(part.state_dict()))
        for sums in (run.stepper.losses, run.stepper.metrics):
            yield partial(vars(sums).update, copy.deepcopy(vars(sums)))
        yield partial(setattr, self._reading, "recorded", self._reading.now())

    def settle(self) -> None:
        """Mark the recorded step as settled: nothing was due at it."""
        if self._note is not None:
            self._note.is_settled = True

    def put_back(self, run: Run) -> bool:
        """Restore the run to the last complete step, and return whether it has state that no checkpoint holds.

        Raises:
            Unknown: The current step has changed what cannot be restored, or processes are at different steps.
        """
        if not self._is_on:
            return False
        note = self._note
        step = 0 if note is None else note.step
        changed = note is not None and note.versions != list(_versions(run))
        if not self._is_shared(f"{step} {note is not None and note.is_settled} {changed}"):
            raise Unknown("not all processes ended in the same step")
        if note is None or step == run.checkpointer.last_step:
            return False
        if changed:
            raise Unknown(f"the step after step {step} had begun to change the weights")
        for undo in note.undo:
            undo()
        run.position.is_settled = note.is_settled
        return True

    def _is_shared(self, place: str) -> bool:
        """Return whether all processes ended at the same position; the others are waited for only briefly."""
        if PartialState().num_processes == 1:
            return True
        try:
            meeting = Meeting(f"last-step/{self._number}")
            meeting.tell(place)
        except (RuntimeError, ValueError):  # the store is gone
            return False
        return set(meeting.told(_PATIENCE) or ()) == {place}


def _copy_back(run: Run, kept: Mapping[str, Tensor]) -> None:
    buffers = dict(_buffers(run))  # a step may have replaced them
    with torch.no_grad():
        for name, value in kept.items():
            buffers[name].copy_(value)


def _optimizer(run: Run) -> Any:
    return run.checkpointer.model.stateful["optimizer"].optimizer


def _networks(run: Run) -> list[nn.Module]:
    """Return the model and the other networks."""
    parts = run.checkpointer.model
    return [parts.model, *parts.kept.found().networks.values()]


def _buffers(run: Run) -> Iterator[tuple[str, Tensor]]:
    for place, network in enumerate(_networks(run)):
        yield from ((f"{place}.{name}", buffer) for name, buffer in network.named_buffers())


def _versions(run: Run) -> Iterator[int]:
    """Yield how often each parameter and each tensor of the optimizer was changed in place."""
    yield from (version_of(parameter) for network in _networks(run) for parameter in network.parameters())
    for state in _optimizer(run).state.values():
        yield from (version_of(value) for value in state.values() if isinstance(value, Tensor))

"""The last complete step of a training, kept so that an exception in the next one can still end with a checkpoint.

A step changes weights and the optimizer's state only when the optimizer steps. Everything else it changes is small:
counters, random state, buffers, sums, the position in the data. That is recorded after each step and restored if the
next one fails. Once the optimizer has begun to step, the weights of the complete step are gone, and no checkpoint can
be made of it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import timedelta
from itertools import count
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn

from accmt._compat import version_of
from accmt.checkpoint.rng import random_state, set_random_state
from accmt.distributed.store import Meeting
from accmt.loop.progress import COUNTERS
from accmt.loop.run import Run

_numbers = count(1)
_PATIENCE = timedelta(seconds=5)


class Unknown(Exception):
    """Error: there is no complete step to make a checkpoint of; the message says why."""


@dataclass(slots=True)
class _Note:
    """State of a run after a step, except weights and optimizer state; `versions` show whether those have changed."""

    is_settled: bool
    versions: list[int]
    counters: dict[str, Any]
    state: dict[str, Any]
    engine: dict[str, Any]
    lines: tuple[int, int]
    random: dict[str, Tensor]
    buffers: dict[str, Tensor]
    gradients: dict[str, Tensor]
    groups: list[dict[str, Any]]
    stateful: dict[str, Any]
    sums: tuple[Any, Any]
    read: tuple[Any, Any]


class LastStep:
    """Recorder of the steps of a run, which can restore the run to the last complete one."""

    def __init__(self) -> None:
        self._number = next(_numbers)
        self._note: _Note | None = None
        self._engine: dict[str, Any] | None = None

    def note(self, run: Run, *, is_settled: bool) -> None:
        """Record a step, before or after (`is_settled`) the work due at it is done."""
        if self._engine is None or is_settled:
            self._engine = run.engine.state()
        optimizer, buffers = _optimizer(run), _buffers(run).items()
        self._note = _Note(
            is_settled,
            list(_versions(run)),
            {name: getattr(run.position, name) for name in (*COUNTERS, "offset", "ended_epoch")},
            {entry.name: copy.copy(getattr(run.state, entry.name)) for entry in fields(run.state)},
            self._engine,
            (run.history.lines, run.decision_log.lines),
            random_state(run.device),
            {name: buffer.detach().clone() for name, buffer in buffers},
            {name: gradient.detach().clone() for name, gradient in run.stepper.gradients().items()},
            [copy.deepcopy({k: v for k, v in group.items() if k != "params"}) for group in optimizer.param_groups],
            copy.deepcopy({name: part.state_dict() for name, part in _others(run)}),
            (copy.deepcopy(run.stepper.losses), copy.deepcopy(run.training_metrics)),
            (run.data.state(), run.generators.states()),
        )

    def settle(self) -> None:
        """Mark the recorded step as settled: nothing was due at it."""
        if self._note is not None:
            self._note.is_settled = True

    def put_back(self, run: Run) -> bool:
        """Restore the run to the last complete step, and return whether it has state that no checkpoint holds.

        Raises:
            Unknown: The current step has changed what cannot be restored, or processes are at different steps.
        """
        note = self._note
        step = 0 if note is None else note.counters["step"]
        changed = note is not None and note.versions != list(_versions(run))
        if not self._is_shared(f"{step} {note is not None and note.is_settled} {changed}"):
            raise Unknown("not all processes came to an end in the same step")
        if note is None or step == run.checkpointed_at:
            return False
        if changed:
            raise Unknown(f"the step after step {step} had begun to change the weights")
        _put_back(run, note)
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


class NoLastStep(LastStep):
    """Null recorder, for trainings that make no checkpoint when an exception ends them."""

    def note(self, run: Run, *, is_settled: bool) -> None:
        """Do nothing."""

    def settle(self) -> None:
        """Do nothing."""

    def put_back(self, run: Run) -> bool:
        """Do nothing."""
        return False


@dataclass(frozen=True, slots=True)
class _Read:
    """Training data, or generators, with the recorded state, which is what a checkpoint asks for."""

    data: Any
    noted: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)

    def state(self) -> Any:
        return self.noted

    def states(self) -> Any:
        return self.noted


def _put_back(run: Run, note: _Note) -> None:
    for name, value in note.counters.items():
        setattr(run.position, name, value)
    for name, value in note.state.items():
        setattr(run.state, name, value)
    run.engine.restore(note.engine)
    run.history.lines, run.decision_log.lines = note.lines
    run.is_settled = note.is_settled
    set_random_state(note.random, run.device)
    buffers = _buffers(run)
    with torch.no_grad():
        for name, kept in note.buffers.items():
            buffers[name].copy_(kept)
    run.stepper.put_back(note.gradients)
    for group, kept_group in zip(_optimizer(run).param_groups, note.groups, strict=True):
        group.update(kept_group)
    for name, part in _others(run):
        part.load_state_dict(note.stateful[name])
    run.stepper.losses, run.training_metrics = note.sums
    run.data, run.generators = _Read(run.data, note.read[0]), _Read(run.generators, note.read[1])  # type: ignore[assignment]


def _optimizer(run: Run) -> Any:
    return run.parts.stateful["optimizer"].optimizer


def _networks(run: Run) -> list[nn.Module]:
    """Return the model and the networks beside it."""
    kept = run.parts.kept
    return [run.model, *(() if kept is None else kept.found().networks.values())]


def _buffers(run: Run) -> dict[str, Tensor]:
    return {
        f"{place}.{name}": buffer
        for place, network in enumerate(_networks(run))
        for name, buffer in network.named_buffers()
    }


def _others(run: Run) -> Iterator[tuple[str, Any]]:
    """Return the small stateful parts besides model and optimizer: scheduler, scaler."""
    return ((name, part) for name, part in run.parts.stateful.items() if name != "optimizer")


def _versions(run: Run) -> Iterator[int]:
    """Yield how often each parameter and each tensor of the optimizer was changed in place."""
    yield from (version_of(parameter) for network in _networks(run) for parameter in network.parameters())
    for state in _optimizer(run).state.values():
        yield from (version_of(value) for value in state.values() if isinstance(value, Tensor))

"""The last complete step of a training, kept so that an exception in the next one can still end with a checkpoint.

A step changes weights and the optimizer's state only when the optimizer steps. What else it changes is small: counters,
random numbers, buffers, sums, the place in the data. That is noted after each step and put back when the next one
fails. Where the optimizer had begun to step, the weights of the complete step are gone, and there is nothing to make a
checkpoint of.
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
from torch.distributed.distributed_c10d import _get_default_store

from accmt.checkpoint.rng import random_state, set_random_state
from accmt.loop.position import COUNTERS
from accmt.loop.run import Run

_numbers = count(1)
_PATIENCE = timedelta(seconds=5)


class Unknown(Exception):
    """There is no complete step to make a checkpoint of; the message says why."""


@dataclass(slots=True)
class _Note:
    """What a run held after a step, beside weights and the optimizer's state. `versions` tell whether those changed."""

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
    """Notes each step of a run, and puts the run back to the last one that was complete."""

    def __init__(self) -> None:
        self._number = next(_numbers)
        self._note: _Note | None = None
        self._engine: dict[str, Any] | None = None

    def note(self, run: Run, *, is_settled: bool) -> None:
        """Note a step: before what is due at it is done, or once that is done."""
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
        """Nothing was due at the step that was noted."""
        if self._note is not None:
            self._note.is_settled = True

    def put_back(self, run: Run) -> bool:
        """Put the run back to the last complete step, and say whether there is anything of it that no checkpoint holds.

        Raises:
            Unknown: The step under way has changed what cannot be put back, or processes are at different steps.
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
        """Whether all processes ended at the same place; the others are waited for only a moment."""
        state = PartialState()
        if state.num_processes == 1:
            return True
        keys = [f"accmt/last-step/{self._number}/{rank}" for rank in range(state.num_processes)]
        try:
            store = _get_default_store()
            store.set(keys[state.process_index], place)
            store.wait(keys, _PATIENCE)
            return all(store.get(key).decode() == place for key in keys)
        except (RuntimeError, ValueError):  # they run on, or are gone
            return False


class NoLastStep(LastStep):
    """No checkpoint is made where an exception ends the training: nothing is noted."""

    def note(self, run: Run, *, is_settled: bool) -> None:
        """Do nothing."""

    def settle(self) -> None:
        """Do nothing."""

    def put_back(self, run: Run) -> bool:
        """Do nothing."""
        return False


@dataclass(frozen=True, slots=True)
class _Read:
    """The training data as they were: what a checkpoint asks them for."""

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
    """The model and what is beside it."""
    kept = run.parts.kept
    return [run.model, *(() if kept is None else kept.found().networks.values())]


def _buffers(run: Run) -> dict[str, Tensor]:
    return {
        f"{place}.{name}": buffer
        for place, network in enumerate(_networks(run))
        for name, buffer in network.named_buffers()
    }


def _others(run: Run) -> Iterator[tuple[str, Any]]:
    """The small parts beside model and optimizer: scheduler, scaler."""
    return ((name, part) for name, part in run.parts.stateful.items() if name != "optimizer")


def _versions(run: Run) -> Iterator[int]:
    """How often each parameter and each tensor of the optimizer was changed in its place."""
    yield from (parameter._version for network in _networks(run) for parameter in network.parameters())
    for state in _optimizer(run).state.values():
        yield from (value._version for value in state.values() if isinstance(value, Tensor))

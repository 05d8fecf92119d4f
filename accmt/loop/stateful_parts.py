"""Stateful parts of a training that cannot have the methods themselves: the pure engine, the state that users see, and
what is kept in objects of other libraries or of the user."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from accmt.checkpoint.extra_state import ExtraState
from accmt.checkpoint.rng import check_random_state, random_state, set_random_state
from accmt.checkpoint.serialization import pack, unpack
from accmt.data.generators import Generators
from accmt.data.loaders import TrainingData
from accmt.loop.progress import TrainingPosition
from accmt.module import AcceleratorModule
from accmt.rules import RuleEngine
from accmt.rules.codec import from_plain_at
from accmt.states import TrainingState
from accmt.tracking.tracker import check_state


@dataclass(frozen=True, slots=True)
class Part:
    """Stateful part made of functions."""

    state_dict: Callable[[], Any]
    check: Callable[[Any], None]
    load: Callable[[Any], None]

    def load_state_dict(self, state: Any) -> list[str]:
        self.load(state)
        return []


class EngineState:
    """State of the rule engine, which knows no checkpoint."""

    def __init__(self, engine: RuleEngine) -> None:
        self._engine = engine

    def state_dict(self) -> dict[str, Any]:
        return self._engine.state()

    def check(self, state: Any) -> None:
        self.restored(state)

    def restored(self, state: Mapping[str, Any]) -> RuleEngine:
        """Return an engine of the same rules with a state; the training's own one is not changed."""
        engine = RuleEngine(self._engine.rules, self._engine.facts)
        engine.restore(state)
        return engine

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        return self._engine.restore(state)


class PublicState:
    """State of a training as users see it; the engine restores its own patience."""

    def __init__(self, state: TrainingState, engine: RuleEngine) -> None:
        self._state = state
        self._engine = engine

    def state_dict(self) -> Any:
        return pack(asdict(self._state))[0]

    def check(self, state: Any) -> None:
        values = unpack(state, {})
        for entry in fields(self._state):
            if type(values[entry.name]) is not type(getattr(self._state, entry.name)):
                raise ValueError(f"{entry.name} is {values[entry.name]!r:.100}")

    def load_state_dict(self, state: Any) -> list[str]:
        values = unpack(state, {})
        for entry in fields(self._state):
            setattr(self._state, entry.name, values[entry.name])
        self._state.finished = False
        self._state.patience_left = self._engine.patience_left()
        return []


class RandomStates:
    """Random state of a process: now, and as it was at the start of the epoch, from which data are skipped.

    Attributes:
        epoch: The state at the start of the epoch.
        resumed: The state to resume with, once the epoch's earlier data have been skipped.
    """

    def __init__(self, device: torch.device, position: TrainingPosition) -> None:
        self._device = device
        self._position = position
        self.epoch: dict[str, Tensor] = {}
        self.resumed: dict[str, Tensor] | None = None

    def start_epoch(self) -> None:
        """Remember the state at the start of an epoch."""
        self.epoch = random_state(self._device)

    def resume(self) -> None:
        """Set the state to resume with, if there is one."""
        resumed, self.resumed = self.resumed, None
        if resumed is not None:
            set_random_state(resumed, self._device)

    def rewind(self) -> Callable[[], None] | None:
        """Set the state at the start of a resumed epoch, and return what then sets the state to resume with; None if
        there is none."""
        resumed, self.resumed = self.resumed, None
        if resumed is None or not self.epoch:
            return None
        set_random_state(self.epoch, self._device)
        return partial(set_random_state, resumed, self._device)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {"now": random_state(self._device), "epoch": {} if self._position.ended_epoch else self.epoch}

    def check(self, state: Any) -> None:
        check_random_state(state["now"], self._device)
        if state["epoch"]:
            check_random_state(state["epoch"], self._device)

    def load_state_dict(self, state: Mapping[str, dict[str, Tensor]]) -> list[str]:
        self.epoch, self.resumed = state["epoch"], state["now"]
        return []


@dataclass(frozen=True, slots=True)
class _Reading:
    reading: dict[str, Any]
    generators: dict[str, Any]


class Reading:
    """Reading of the training data, and the random generators that objects keep for themselves.

    Args:
        data: The training data.
        generators: The generators.
        position: The position, which is restored first.
        warn: Reports, once, that the state cannot be written.

    Attributes:
        recorded: The state at the last complete step, if the training was restored to it; then that state is written.
    """

    def __init__(
        self, data: TrainingData, generators: Generators, position: TrainingPosition, warn: Callable[[str], None]
    ) -> None:
        self._data = data
        self._generators = generators
        self._position = position
        self._warn: Callable[[str], None] | None = warn
        self.recorded: dict[str, Any] | None = None

    def now(self) -> dict[str, Any]:
        """Return the present state."""
        return {"reading": self._data.state(), "generators": self._generators.states()}

    def state_dict(self) -> dict[str, Any] | None:
        """Return the state; None if it is not plain data."""
        state = self.now() if self.recorded is None else self.recorded
        try:
            pack(state)
        except TypeError as error:
            if self._warn is not None:
                text = f"the state of the training data {error}: a resumed training will not match exactly"
                self._warn(text)
            self._warn = None
            return None
        return state

    def check(self, state: Any) -> None:
        from_plain_at("data", _Reading | None, state)
        if state is not None:
            self._data.check(state["reading"])
            self._generators.check(state["generators"])

    def load_state_dict(self, state: Mapping[str, Any] | None) -> list[str]:
        if state is None:
            return []
        notes = self._data.restore(state["reading"], moved=self._position.moved)
        self._generators.restore(state["generators"])
        return notes


def tracker_part(module: AcceleratorModule) -> Part:
    """Return the runs of the trackers. They are started with the state, before the other parts are restored."""

    def check(state: Any) -> None:
        from_plain_at("tracker", dict[str, Any], state)
        check_state(state)

    return Part(lambda: module.tracker.state(), check, lambda state: None)


def objects_part(kept: ExtraState) -> Part:
    """Return callbacks and other objects that have their own state. It is restored once they exist, by `begin`."""

    return Part(kept.own, lambda state: from_plain_at("objects", dict[str, Any], state), kept.restore_own)

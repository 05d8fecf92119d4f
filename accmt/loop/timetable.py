"""Timetable of a training: at which steps, and when between them, the loop has to do more than steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from accmt.distributed.heartbeat import Heartbeat
from accmt.loop.progress import TrainingPosition
from accmt.rules import RuleEngine

LOOK_EVERY = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class StepInterval:
    """Regular interval of optimizer steps; None for the end of every epoch."""

    steps: int | None

    def ends_at(self, step: int, *, ends_epoch: bool) -> bool:
        """Return whether an interval ends with a step."""
        return ends_epoch if self.steps is None else step % self.steps == 0

    def length(self, steps_per_epoch: int | None) -> int | None:
        """Return its optimizer steps; None if the length of an epoch is not known."""
        return steps_per_epoch if self.steps is None else self.steps

    def next_end(self, step: int) -> float:
        """Return the next step, after this one, with which an interval ends; ends of epochs do not count."""
        return math.inf if self.steps is None else (step // self.steps + 1) * self.steps


class Timetable:
    """Steps and moments at which something may be due, so that any other step costs only a comparison.

    Args:
        position: The position of the training.
        engine: The rules.
        heartbeat: Events that do not depend on the step count.
        intervals: The intervals that count, besides the cadences of the rules.
    """

    def __init__(
        self,
        position: TrainingPosition,
        engine: RuleEngine,
        heartbeat: Heartbeat,
        intervals: tuple[StepInterval | None, ...],
    ) -> None:
        self._position = position
        self._engine = engine
        self._heartbeat = heartbeat
        self._intervals = [interval for interval in intervals if interval is not None]
        self._next_step: float = 0
        self._next_look: float = 0

    def update(self) -> None:
        """Find the next step at which something may be due, besides the end of an epoch."""
        step = self._position.step
        known = (self._engine.next_step or math.inf, self._position.total_steps or math.inf)
        self._next_step = min(*known, *(interval.next_end(step) for interval in self._intervals), math.inf)

    def is_due(self) -> bool:
        """Return whether something may be due at this step. Must be called at every step."""
        moment = self._engine.next_elapsed
        if self._engine.watches:
            moment = min(moment, self._next_look)
        strikes = self._heartbeat.strikes(moment, self._position.step)
        return strikes or self._position.step >= self._next_step or self._position.ended_epoch

    def looks(self, elapsed: float) -> bool:
        """Return whether it is time to look at values on the device."""
        return elapsed >= self._next_look

    def looked(self, elapsed: float) -> None:
        """Set the next look, from one at this moment."""
        self._next_look = elapsed + LOOK_EVERY

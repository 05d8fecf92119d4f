"""Counters of a loop that accmt does not run, and the means of its losses. Does not import torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from accmt.config.errors import must_be
from accmt.config.kinds import is_number, is_whole
from accmt.loop.stopwatch import Stopwatch
from accmt.rules import Progress
from accmt.rules.codec import Count, Finite, Jsonable

_ROUNDING = 1e-9  # of a fraction of an epoch


@dataclass(frozen=True, slots=True, eq=False)
class LossSums(Jsonable):
    """Sum and weight of the losses since the last evaluation."""

    total: float
    weight: float


@dataclass(frozen=True, slots=True, eq=False)
class CountersState(Jsonable):
    """The counters in a checkpoint; `began` is the step at which the epoch began."""

    step: Count
    epoch: Count
    began: Count
    evaluation: Count
    samples: Count
    evaluated: int
    elapsed: Finite
    losses: LossSums


class LossMean:
    """Weighted mean of losses. Tensors are summed where they are, because to read them is to wait for the device."""

    __slots__ = ("total", "weight")

    def __init__(self) -> None:
        self.total: Any = 0.0
        self.weight: float = 0

    def add(self, loss: Any, weight: float) -> None:
        """Add a number, or a scalar on a device."""
        if isinstance(self.total, float) and not isinstance(loss, float):
            self.total = (loss.float() if loss.device.type == "mps" else loss.double()) * weight + self.total
        elif isinstance(self.total, float):
            self.total += loss * weight
        else:
            self.total.add_(loss, alpha=weight)
        self.weight += weight

    def clear(self) -> None:
        self.total, self.weight = 0.0, 0

    @property
    def mean(self) -> float:
        """The mean; NaN if there was nothing."""
        return float(self.total) / self.weight if self.weight else math.nan


class Counters:
    """The counters of a training, its clock and its losses.

    Attributes:
        ended_epoch: The step just done was the last of an epoch.
        evaluated: The step of the last evaluation, -1 before the first one.
        losses, looked: The means of losses since the last evaluation, and since the last look, if the rule `looks`.
    """

    def __init__(self) -> None:
        self.step = self.epoch = self.evaluation = self.samples = self._began = 0
        self.evaluated = -1
        self.ended_epoch = False
        self.clock = Stopwatch()
        self.losses = LossMean()
        self.looked = LossMean()
        self.looks = False

    def advance(self, step: int | None, epoch: float | None, samples: int | None, per_epoch: int | None) -> int:
        """Count to a step, and return its samples.

        Raises:
            ValueError: A counter is of a wrong kind, or goes back.
        """
        now = self.step + 1 if step is None else step
        if not is_whole(now, self.step + 1):
            raise ValueError(_no_step(now, self.step))
        self.step, self.ended_epoch = now, False
        if epoch is not None:
            self._complete(_completed(epoch))
        elif per_epoch:
            self._complete(now // per_epoch)
        if samples is None:
            return 1
        more = samples - self.samples if is_whole(samples) else -1
        if more < 0:
            raise ValueError(f"samples {must_be(f'a whole number from {self.samples}, the count so far,', samples)}")
        self.samples += more
        return more

    def add_loss(self, loss: Any, samples: int) -> None:
        """Add the mean loss of a step with so many samples.

        Raises:
            TypeError: It is not a number.
        """
        value = as_number(loss)
        self.losses.add(value, samples)
        if self.looks:
            self.looked.add(value, samples)

    def progress(self, elapsed: float) -> Progress:
        """Return the counters as the rules see them."""
        return Progress(self.step, self.epoch, self.step - self._began, self.evaluation, self.samples, elapsed)

    def state(self) -> CountersState:
        """Return what a checkpoint holds."""
        losses = LossSums(float(self.losses.total), self.losses.weight)
        counts = (self.step, self.epoch, self._began, self.evaluation, self.samples, self.evaluated)
        return CountersState(*counts, self.clock.elapsed(), losses)

    def restore(self, state: CountersState) -> None:
        """Continue from a state."""
        self.step, self.epoch, self._began, self.evaluation = state.step, state.epoch, state.began, state.evaluation
        self.samples, self.evaluated = state.samples, state.evaluated
        self.losses.total, self.losses.weight = state.losses.total, state.losses.weight
        self.clock.set(state.elapsed)

    def _complete(self, epochs: int) -> None:
        if epochs < self.epoch:
            raise ValueError(f"epoch is {epochs}, and {self.epoch} epochs are completed already: it cannot go back")
        if epochs > self.epoch:
            self.epoch, self._began, self.ended_epoch = epochs, self.step, True


def as_number(value: Any, what: str = "train_loss") -> Any:
    """Return a number, or a scalar without its graph that is still on its device."""
    if type(value) is float or is_number(value):
        return float(value)
    if hasattr(value, "detach") and getattr(value, "numel", lambda: 0)() == 1 and not value.is_complex():
        return float(value.item()) if value.device.type == "cpu" else value.detach().reshape(())
    if not isinstance(value, str | bool | bytes) and hasattr(value, "__float__") and getattr(value, "size", 1) == 1:
        return float(value)
    raise TypeError(f"{what} {must_be('a number or a tensor of one element', value)}")


def _completed(epoch: Any) -> int:
    """Return the number of completed epochs."""
    if is_whole(epoch, 0):
        return int(epoch)
    if not is_number(epoch) or not 0 <= epoch < math.inf:
        wanted = "the number of completed epochs, such as 2, or 2.5 in the middle of the third,"
        raise ValueError(f"epoch {must_be(wanted, epoch)}")
    return int(epoch + _ROUNDING)


def _no_step(step: Any, before: int) -> str:
    if not is_whole(step, 0):
        return f"step {must_be('the number of optimizer steps done', step)}"
    return f"step is {step}, and step {before} is counted already: call step() once after each optimizer step"

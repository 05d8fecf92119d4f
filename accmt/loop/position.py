"""Where a training is: its counters and its clock."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from accmt.loop.data import TrainingData, Window
from accmt.loop.unit import Unit
from accmt.rules import Progress
from accmt.rules.jsonable import count_from

COUNTERS = ("step", "epoch", "batch", "step_in_epoch", "evaluation", "samples_before")


class Stopwatch:
    """Active training time in seconds, continued over resumes."""

    def __init__(self) -> None:
        self._before = 0.0
        self._started = time.perf_counter()

    def elapsed(self) -> float:
        return self._before + time.perf_counter() - self._started

    def set(self, elapsed: float) -> None:
        """Go on from a given time."""
        self._before, self._started = elapsed, time.perf_counter()


class Position:
    """The counters of a training. A new training is at step 0 of epoch 0.

    Args:
        data: The training batches.
        epochs: How many epochs, where `max_steps` does not say the end.
        max_steps: After how many optimizer steps the training ends, whatever the epochs.
    """

    def __init__(self, data: TrainingData, epochs: int, max_steps: int | None) -> None:
        self._data = data
        self._epochs = epochs
        self._max_steps = max_steps
        self.step = 0
        self.epoch = 0
        self.batch = 0
        self.step_in_epoch = 0
        self.evaluation = 0
        self.samples_before = 0
        self.offset = 0  # what the batches of an epoch that is continued in another unit do not begin with
        self.moved = self.passed_end = False
        self.ended_epoch = False
        self.stopwatch = Stopwatch()
        # Steps that epochs of another length have had more than those of the length of now.
        self._more = 0

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps of the whole training, None where the length of the data is not known."""
        per_epoch = self._data.steps_per_epoch
        if self._max_steps is not None:
            return self._max_steps
        return None if per_epoch is None else per_epoch * self._epochs + self._more

    @property
    def total_epochs(self) -> int | None:
        """Epochs of the whole training, the last perhaps cut short; None where that is not known."""
        if self._max_steps is None:
            return self._epochs
        per_epoch = self._data.steps_per_epoch
        return None if per_epoch is None else -(-(self._max_steps - self._more) // per_epoch)

    @property
    def is_finished(self) -> bool:
        if self._max_steps is not None:
            return self.step >= self._max_steps
        return self.epoch >= self._epochs

    @property
    def is_within_epoch(self) -> bool:
        """Whether some of the epoch was trained on already."""
        return self.batch > 0 or self.offset > 0

    @property
    def ends(self) -> bool:
        """Whether the step that was just done is the last of an epoch; the last of the training counts as one."""
        return self.ended_epoch or (self.batch > 0 and self.step == self.total_steps)

    @property
    def is_last_step(self) -> bool:
        """Whether the step that was just done is the last of the training."""
        last_epoch = self._max_steps is None and self.epoch + 1 == self._epochs
        return self.step == self.total_steps or (self.ended_epoch and last_epoch)

    def advance(self, window: Window) -> None:
        """Count an optimizer step."""
        self.step += 1
        self.step_in_epoch += 1
        self.batch += window.size
        self.ended_epoch = window.is_last

    def next_epoch(self) -> None:
        """Go to the start of the next epoch."""
        self.samples_before += self._samples
        self.epoch += 1
        self.batch = self.step_in_epoch = self.offset = 0
        self.ended_epoch = False

    def progress(self, elapsed: float) -> Progress:
        """The counters as the rules see them: at the end of an epoch it counts as completed."""
        return Progress(
            step=self.step,
            epoch=self.epoch + self.ends,
            step_in_epoch=0 if self.ends else self.step_in_epoch,
            evaluation=self.evaluation,
            samples=self.samples_before + self._samples,
            elapsed=elapsed,
        )

    def to_json(self) -> dict[str, Any]:
        """The position to continue from: the end of an epoch is the start of the next."""
        at_end = self.ended_epoch
        return {
            "step": self.step,
            "epoch": self.epoch + at_end,
            "batch": 0 if at_end else self.batch,
            "step_in_epoch": 0 if at_end else self.step_in_epoch,
            "evaluation": self.evaluation,
            "samples_before": self.samples_before + (self._samples if at_end else 0),
            "place": 0 if at_end else self._place,
            "unit": asdict(self._data.unit),
        }

    def counters(self) -> dict[str, Any]:
        """The counters as they are, to continue from before what is due at this step is done."""
        counters = {name: getattr(self, name) for name in (*COUNTERS, "ended_epoch")}
        return {**counters, "place": self._place, "unit": asdict(self._data.unit)}

    def restore(self, data: Mapping[str, Any], processes: int) -> None:
        """Go on from a position: at the same sample, whatever a batch is now.

        `moved` says whether batches are others than then; `passed_end`, that what is left of the epoch gives no whole
        batch of them, so that the next one follows.

        Args:
            data: What `to_json` or `counters` gave.
            processes: How many processes trained then.

        Raises:
            Mismatch: These data cannot be read on from there.
            ValueError, KeyError, TypeError: `data` are no position.
        """
        for name in COUNTERS:
            setattr(self, name, int(data[name]))
        # Checkpoints of before say how many batches were read, and not of what size.
        then = Unit.from_json(data["unit"]) if "unit" in data else replace(self._data.unit, processes=processes)
        place = count_from(data["place"]) if "place" in data else self.batch * then.size
        self.batch, self.offset = self._data.locate(place, then)
        self.moved, per_epoch = then != self._data.unit, self._data.steps_per_epoch
        self.ended_epoch = bool(data.get("ended_epoch", False))
        if self.ended_epoch and per_epoch is not None:
            self._more = self.step - self.epoch * per_epoch - self.step_in_epoch
        if self.ended_epoch:
            return
        left = self._data.steps_left(self.batch, self.offset)
        if left is None or per_epoch is None:
            return
        if not left:
            self.next_epoch()
            self.passed_end, left = True, per_epoch
        self.step_in_epoch = max(0, per_epoch - left)
        self._more = self.step + left - (self.epoch + 1) * per_epoch

    @property
    def _place(self) -> int:
        """How far the epoch is, in the unit of the data."""
        return self.batch * self._data.unit.size + self.offset

    @property
    def _samples(self) -> int:
        """The samples of the epoch so far."""
        return self._data.samples_after(self.batch, self.offset)

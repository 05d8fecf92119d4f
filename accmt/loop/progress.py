"""Position of a training: its counters and its clock."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from accmt.data.loaders import TrainingData, Window
from accmt.data.position_unit import Unit
from accmt.loop.stopwatch import Stopwatch
from accmt.rules import Progress
from accmt.rules.codec import SPARSE, Count, Finite, from_plain

COUNTERS = ("step", "epoch", "batch", "step_in_epoch", "evaluation", "samples_before")


@dataclass(frozen=True, slots=True)
class _Unit:
    counts: Literal["samples", "batches"]
    batch_size: Count | None
    processes: Count
    readers: Count


@dataclass(frozen=True, slots=True)
class _Counters:
    step: Count
    epoch: Count
    batch: Count
    step_in_epoch: Count
    evaluation: Count
    samples_before: Count
    place: Count
    unit: _Unit
    ended_epoch: bool = field(default=False, metadata=SPARSE)


@dataclass(frozen=True, slots=True)
class _State:
    position: _Counters
    settled: bool
    elapsed: Finite
    data_seed: int
    processes: Count
    steps_per_epoch: Count | None


def epoch_shown(progress: Progress, per_epoch: int | None, epochs: int | None) -> str:
    """Return the completed epochs: `0.5/10` in the middle of the first, `1/10` at its end."""
    within = progress.step_in_epoch
    is_within = within > 0 or not progress.step
    tenths = f".{min(9, 10 * within // per_epoch)}" if per_epoch and is_within else ""
    return f"{progress.epoch}{tenths}" + (f"/{epochs}" if epochs is not None else "")


class TrainingPosition:
    """The counters of a training, its clock, and the order of its data. A new training is at step 0 of epoch 0.

    Args:
        data: The training batches.
        epochs: Number of epochs, unless `max_steps` sets the end.
        max_steps: Number of optimizer steps after which training ends, whatever the epochs.

    Attributes:
        is_settled: The work due at this step is done.
        moved: The position was restored in another unit, because batches differ now.
        passed_end: The rest of the restored epoch has less than one batch, so that the next epoch follows.
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
        self.offset = 0  # skipped before the batches of an epoch that is resumed in another unit
        self.moved = self.passed_end = False
        self.ended_epoch = False
        self.is_settled = True
        self.stopwatch = Stopwatch()
        self.step_clock = Stopwatch()  # of this process alone, and of steps alone
        self.step_clock.pause()
        # Additional steps of past epochs whose length differed from the current one.
        self._more = 0

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps of the whole training; None if the length of the data is unknown."""
        if self._max_steps is not None:
            return self._max_steps
        steps = self._data.steps_before(self._epochs)
        return None if steps is None else steps + self._more

    @property
    def total_epochs(self) -> int | None:
        """Epochs of the whole training, the last possibly partial; None if unknown."""
        return self._epochs if self._max_steps is None else self._data.epochs_for(self._max_steps - self._more)

    @property
    def is_finished(self) -> bool:
        if self._max_steps is not None:
            return self.step >= self._max_steps
        return self.epoch >= self._epochs

    @property
    def is_within_epoch(self) -> bool:
        """True if part of the epoch was trained on already."""
        return self.batch > 0 or self.offset > 0

    @property
    def ends(self) -> bool:
        """True if the step just done is the last of an epoch; the last step of the training counts as one."""
        return self.ended_epoch or (self.batch > 0 and self.step == self.total_steps)

    @property
    def is_last_step(self) -> bool:
        """True if the step just done is the last of the training."""
        last_epoch = self._max_steps is None and self.epoch + 1 == self._epochs
        return self.step == self.total_steps or (self.ended_epoch and last_epoch)

    def advance(self, window: Window) -> None:
        """Count an optimizer step."""
        self.step += 1
        self.step_in_epoch += 1
        self.batch += window.size
        self.ended_epoch = window.is_last

    def next_epoch(self) -> None:
        """Move to the start of the next epoch."""
        self.samples_before += self._samples
        self.epoch += 1
        self.batch = self.step_in_epoch = self.offset = 0
        self.ended_epoch = False

    def progress(self, elapsed: float) -> Progress:
        """Return the counters as the rules see them: at its end, an epoch counts as completed."""
        return Progress(
            step=self.step,
            epoch=self.epoch + self.ends,
            step_in_epoch=0 if self.ends else self.step_in_epoch,
            evaluation=self.evaluation,
            samples=self.samples_before + self._samples,
            elapsed=elapsed,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the position to resume from: the end of an epoch, once all work due there is done, is the start of the
        next."""
        at_end = self.ended_epoch and self.is_settled
        counters = {name: getattr(self, name) for name in COUNTERS}
        if at_end:
            counters |= {"epoch": self.epoch + 1, "batch": 0, "step_in_epoch": 0}
            counters["samples_before"] += self._samples
        elif not self.is_settled:
            counters["ended_epoch"] = self.ended_epoch
        unit = self._data.unit
        return {
            "position": {**counters, "place": 0 if at_end else self._place, "unit": asdict(unit)},
            "settled": self.is_settled,
            "elapsed": self.stopwatch.elapsed(),
            "data_seed": self._data.seed,
            "processes": unit.processes,
            "steps_per_epoch": self._data.steps_in(counters["epoch"]),
        }

    def check(self, state: Any) -> None:
        """Check that the training can resume from a state: also that its data can be read from there."""
        from_plain(_State, state)
        copy(self).restore(state["position"])

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Restore a position, and return what differs from then, one line each."""
        self.restore(state["position"])
        self.is_settled = state["settled"]
        self.stopwatch.set(state["elapsed"])
        self._data.seed = state["data_seed"]
        notes, processes = [], self._data.unit.processes
        length = self._data.steps_in(state["position"]["epoch"])
        if state["steps_per_epoch"] != length:
            notes.append(
                f"an epoch had {state['steps_per_epoch']} steps and now has {length}: the count of steps continues"
            )
        if state["processes"] != processes:
            notes.append(
                f"the number of processes was {state['processes']} and is {processes}: "
                f"the training continues from the same sample, but the results will not be bit-identical"
            )
        return notes

    def restore(self, data: Mapping[str, Any]) -> None:
        """Restore the counters: at the same sample, even if batches differ now.

        Args:
            data: The counters in a state.

        Raises:
            Mismatch: The data cannot be read from that position.
        """
        for name in COUNTERS:
            setattr(self, name, data[name])
        then = Unit(**data["unit"])
        self.batch, self.offset = self._data.locate(data["place"], then)
        self.moved = then != self._data.unit
        self.ended_epoch = data.get("ended_epoch", False)
        before = self._data.steps_before(self.epoch)
        if self.ended_epoch and before is not None:
            self._more = self.step - self.step_in_epoch - before
        if self.ended_epoch:
            return
        left = self._data.steps_left(self.epoch, self.batch, self.offset)
        if left == 0:
            self.next_epoch()
            self.passed_end, left = True, self._data.steps_in(self.epoch)
        per_epoch, before = self._data.steps_in(self.epoch), self._data.steps_before(self.epoch)
        if left is None or per_epoch is None or before is None:
            return
        self.step_in_epoch = max(0, per_epoch - left)
        self._more = self.step + left - before - per_epoch

    @property
    def _place(self) -> int:
        """Position within the epoch, in the unit of the data."""
        return self.batch * self._data.unit.size + self.offset

    @property
    def _samples(self) -> int:
        """Samples of the epoch so far."""
        return self._data.samples_after(self.batch, self.offset)

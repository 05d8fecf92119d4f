"""A running training: its parts, passed to the functions of the loop."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from accmt.checkpoint.checkpointer import Checkpointer, CheckpointResult
from accmt.checkpoint.model_store import ModelStore
from accmt.data.loaders import TrainingData
from accmt.display.display import Display, ShownPosition
from accmt.distributed.heartbeat import Heartbeat
from accmt.loop.evaluate import Evaluation
from accmt.loop.hooks import Hooks
from accmt.loop.profiling import StepProfiler
from accmt.loop.progress import TrainingPosition, epoch_shown
from accmt.loop.records import Records
from accmt.loop.stateful_parts import RandomStates
from accmt.loop.step import Stepper
from accmt.loop.timetable import StepInterval, Timetable
from accmt.module import AcceleratorModule
from accmt.monitor import Monitor
from accmt.notices import warn
from accmt.rules import FollowedScore, RuleEngine
from accmt.states import TrainingState
from accmt.tracking.step_log import CHECKPOINT
from accmt.tracking.tracker import Tracker

if TYPE_CHECKING:
    from accmt.loop.last_step import LastStep


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """Options of the loop itself.

    Attributes:
        log: The interval between two logs; None for never, or if a rule says when.
        eval_when_start: Evaluate before the first step.
        eval_when_finish: Evaluate after the last step, if evaluations do not happen at the end of epochs anyway.
        train_loss_name, val_loss_name: Names of the losses in trackers.
        monitor: The values that are sent to trackers.
        clean: The interval between cleanings of caches, besides those at evaluations and ends of epochs.
        sanity_check: Try one batch of each validation dataset before the first step.
        followed: The score that the scheduler follows; None if it follows none.
    """

    log: StepInterval | None
    eval_when_start: bool
    eval_when_finish: bool
    train_loss_name: str
    val_loss_name: str
    monitor: Monitor
    clean: StepInterval | None
    sanity_check: bool
    followed: FollowedScore | None


@dataclass(frozen=True, slots=True)
class Run:
    """All parts of a training, each once; what a part already holds is a property here.

    Attributes:
        options: The options of the loop.
        module: The module, with its Accelerator, its state and its tracker.
        data: The training data.
        evaluation: The evaluation, with the callbacks.
        stepper: The maker of optimizer steps, with the training losses and metrics.
        position: The counters and the clock.
        engine: The rules.
        savings: The writer of saved models; None if none are saved.
        checkpointer: The maker of checkpoints, with the model and all other stateful parts.
        records: The journals, and the decisions.
        display: The terminal.
        heartbeat: Events that do not depend on the step count.
        timetable: When something may be due.
        random: The random states at the start of the epoch, and of the checkpoint.
        last_step: The last complete step, kept if a checkpoint must be made of it when the next one fails.
    """

    options: LoopOptions
    module: AcceleratorModule
    data: TrainingData
    evaluation: Evaluation
    stepper: Stepper
    position: TrainingPosition
    engine: RuleEngine
    savings: ModelStore | None
    checkpointer: Checkpointer
    records: Records
    display: Display
    heartbeat: Heartbeat
    timetable: Timetable
    random: RandomStates
    last_step: LastStep

    @property
    def state(self) -> TrainingState:
        return self.module.state

    @property
    def tracker(self) -> Tracker:
        return self.module.tracker

    @property
    def profiler(self) -> StepProfiler | None:
        return self.stepper.profiler

    @property
    def hooks(self) -> Hooks:
        return self.evaluation.hooks

    @property
    def held_out(self) -> Evaluation:
        """The evaluation on held-out datasets, after the training and without callbacks; false if there are none."""
        loaders, hooks = self.evaluation.held_out, Hooks((), self.state)
        return replace(self.evaluation, loaders=loaders, held_out={}, hooks=hooks, replicated=None)

    @property
    def device(self) -> torch.device:
        return self.module.device

    @property
    def resumed(self) -> bool:
        return self.checkpointer.resumed_from is not None

    def moment(self) -> ShownPosition:
        """Return the position for the display; safe to call from another thread."""
        position, seconds = self.position, self.position.step_clock.elapsed()
        epoch = epoch_shown(position.progress(0.0), self.data.steps_per_epoch, position.total_epochs)
        rate, elapsed = self.stepper.rate_at_hand, position.stopwatch.elapsed()
        return ShownPosition(position.step, position.total_steps, epoch, seconds, rate, elapsed)

    def checkpoint(self) -> None:
        """Make a checkpoint, once the one being written is complete.

        Raises:
            Failed: Two checkpoints in a row could not be made.
        """
        if not self.checkpointer.writes:
            return
        self.finish_checkpoint()
        self.state.num_checkpoints_made += 1
        self._conclude(self.checkpointer.save(self.position.step))

    def finish_checkpoint(self) -> None:
        """Wait for a checkpoint that is being written, and report its outcome.

        Raises:
            Failed: Two checkpoints in a row could not be made.
        """
        self._conclude(self.checkpointer.finish())

    def _conclude(self, outcome: CheckpointResult | None) -> None:
        """Report the outcome of a checkpoint. One failure is a warning, and training continues until the next
        checkpoint; two in a row are an error."""
        if outcome is None:
            return
        if outcome.failure is not None:
            self.state.num_checkpoints_made -= 1
            if outcome.ends_training:
                raise outcome.failure
            warn(f"no checkpoint at step {outcome.step}: {outcome.failure}")
            return
        if outcome.warning:
            warn(outcome.warning)
        self.records.steps.add_event(outcome.step, CHECKPOINT)
        if self.options.monitor.checkpoint:
            self.tracker.log({"checkpoint": float(self.state.num_checkpoints_made)}, outcome.step)
        self.hooks.on_save_checkpoint()

    def close(self) -> None:
        """Release what the training holds besides its results."""
        if self.profiler is not None:
            self.profiler.close()
        self.heartbeat.close()
        self.checkpointer.close()

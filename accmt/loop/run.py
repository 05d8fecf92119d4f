"""A running training: the assembled parts, passed to the functions of the loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn

from accmt.checkpoint.format import Parts
from accmt.checkpoint.model_store import ModelStore
from accmt.data.generators import Generators
from accmt.data.loaders import TrainingData
from accmt.display.display import Display
from accmt.distributed.heartbeat import Pulse
from accmt.loop.evaluate import Evaluation
from accmt.loop.hooks import Hooks
from accmt.loop.learning_rate import Schedule
from accmt.loop.progress import Position
from accmt.loop.step import Stepper
from accmt.loop.training_metrics import TrainingMetrics
from accmt.module import AcceleratorModule
from accmt.monitor import Monitor
from accmt.rules import Decision, FollowedScore, RuleEngine
from accmt.states import TrainingState
from accmt.tracking.journal import Journal
from accmt.tracking.tracker import Tracker


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """Options of the loop itself.

    Attributes:
        log_every: Optimizer steps between two logs, -1 for the end of every epoch, None for never, or if a rule says
            when.
        eval_when_start: Evaluate before the first step.
        eval_when_finish: Evaluate after the last step, if evaluations do not happen at the end of epochs anyway.
        train_loss_name, val_loss_name: Names of the losses in trackers.
        monitor: The values that are sent to trackers.
        clean_every: Optimizer steps between cleanings of caches, besides those at evaluations and ends of epochs.
        sanity_check: Try one batch of each validation dataset before the first step.
        followed: The score that the scheduler follows; None if it follows none.
    """

    log_every: int | None
    eval_when_start: bool
    eval_when_finish: bool
    train_loss_name: str
    val_loss_name: str
    monitor: Monitor
    clean_every: int | None
    sanity_check: bool
    followed: FollowedScore | None


class Checkpointer(Protocol):
    """Maker of checkpoints of a run, or a no-op. Writing may continue in the background."""

    @property
    def ended(self) -> int:
        """Number of background writes that have finished."""
        ...

    @property
    def has_news(self) -> bool:
        """True if a background write has finished since the last `finish`."""
        ...

    def save(self, run: Run) -> None:
        """Make a checkpoint of the current state."""
        ...

    def finish(self, run: Run) -> None:
        """Wait for the background write to complete, and report its outcome."""
        ...

    def close(self) -> None:
        """Release what is held."""
        ...


class Steps(Protocol):
    """Recorder of each complete step, if a checkpoint is to be made of it when the next one fails."""

    def note(self, run: Run, *, is_settled: bool) -> None:
        """Record a step, before or after (`is_settled`) the work due at it is done."""
        ...

    def settle(self) -> None:
        """Mark the recorded step as settled: nothing was due at it."""
        ...

    def put_back(self, run: Run) -> bool:
        """Restore the run to the last complete step, and return whether it has state that no checkpoint holds."""
        ...


class NoCheckpointer:
    """Null checkpointer, for when checkpointing is off."""

    has_news = False
    ended = 0

    def save(self, run: Run) -> None:
        """Do nothing."""

    def finish(self, run: Run) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


@dataclass(slots=True)
class Run:
    """All parts of a training.

    `model` is the module's own model, unwrapped; `parts` is what a checkpoint consists of; `generators` are those that
    module, model and validation data keep for themselves. `checkpointed_at` is the step of the last checkpoint, -1 if
    there was none; `is_settled` says whether the work due at the current step is done. `epoch_random` is the random
    state at the start of the epoch, `resumed_random` the one to resume with once the epoch's earlier data have been
    skipped. `record` holds the settings and the data as checkpoints record them, and `insists` says that a checkpoint
    was requested whatever its data.
    """

    options: LoopOptions
    module: AcceleratorModule
    model: nn.Module
    parts: Parts
    accelerator: Accelerator
    data: TrainingData
    evaluation: Evaluation
    stepper: Stepper
    training_metrics: TrainingMetrics
    position: Position
    engine: RuleEngine
    state: TrainingState
    hooks: Hooks
    savings: ModelStore | None
    checkpointer: Checkpointer
    history: Journal
    decision_log: Journal
    tracker: Tracker
    display: Display
    pulse: Pulse
    generators: Generators
    schedule: Schedule
    record: dict[str, Any]
    insists: bool
    steps: Steps
    decisions: list[Decision] = field(default_factory=list)
    checkpointed_at: int = -1
    resumed: bool = False
    epoch_random: dict[str, torch.Tensor] = field(default_factory=dict)
    resumed_random: dict[str, torch.Tensor] | None = None
    nan_reported: set[str] = field(default_factory=set)
    failed_savings: set[str] = field(default_factory=set)
    data_state_refused: bool = False
    next_stop: float = 0
    next_look: float = 0
    is_settled: bool = True

    @property
    def device(self) -> torch.device:
        return self.accelerator.device  # type: ignore[no-any-return]

    def flush_journals(self) -> None:
        """Write the lines that could not be written before.

        Raises:
            OSError: They still cannot be written.
        """
        self.history.flush()
        self.decision_log.flush()

    def begin(self) -> None:
        """Apply the restored state of callbacks and module, and warn of what differs."""
        for note in self.parts.kept.begin() if self.parts.kept is not None else ():
            self.display.warn(note)

    def close(self) -> None:
        """Release what the training holds besides its results."""
        self.pulse.close()
        self.checkpointer.close()

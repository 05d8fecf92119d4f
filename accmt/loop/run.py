"""A training that is under way: the assembled parts, handed to the functions of the loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn

from accmt.checkpoint.contents import Parts
from accmt.checkpoint.savings import Savings
from accmt.display.display import Display
from accmt.loop.data import TrainingData
from accmt.loop.evaluate import Evaluation
from accmt.loop.exactness import Generators
from accmt.loop.hooks import Hooks
from accmt.loop.position import Position
from accmt.loop.pulse import Pulse
from accmt.loop.schedule import Schedule
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
    """What the loop itself has to know.

    Attributes:
        log_every: Optimizer steps between two logs, -1 for the end of every epoch, None for never, or where a rule says
            when it is.
        eval_when_start: Evaluate before the first step.
        eval_when_finish: Evaluate after the last step, if evaluations do not happen at the end of epochs anyway.
        train_loss_name, val_loss_name: What trackers call the losses.
        monitor: What trackers are told.
        clean_every: Optimizer steps after which caches are cleaned, besides at evaluations and ends of epochs.
        sanity_check: Try one batch of each validation dataset before the first step.
        followed: The score that the scheduler follows; None where it follows none.
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
    """Makes checkpoints of a run, or does not. Writing may go on in the background."""

    @property
    def ended(self) -> int:
        """How many writings in the background have ended."""
        ...

    @property
    def has_news(self) -> bool:
        """Whether writing in the background has ended since the last `finish`."""
        ...

    def save(self, run: Run) -> None:
        """Make a checkpoint of this moment."""
        ...

    def finish(self, run: Run) -> None:
        """Wait for what is being written in the background, and tell what came of it."""
        ...

    def close(self) -> None:
        """Give back what is held."""
        ...


class Steps(Protocol):
    """Notes each complete step, where a checkpoint is to be made of it when the next one fails."""

    def note(self, run: Run, *, is_settled: bool) -> None:
        """Note a step: before what is due at it is done, or once that is done."""
        ...

    def settle(self) -> None:
        """Nothing was due at the step that was noted."""
        ...

    def put_back(self, run: Run) -> bool:
        """Put the run back to the last complete step, and say whether there is anything of it that no checkpoint
        holds."""
        ...


class NoCheckpointer:
    """Checkpointing is off."""

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

    `model` is the module's own one, in no wrapper, `parts` what a checkpoint is made of, and `generators` those
    that module, model and validation data keep for themselves. `checkpointed_at` is the step of the last
    checkpoint, -1 if there was none; `is_settled` says whether what is due at the step where the run stands is
    done. `epoch_random` is the random state at the start of the epoch, `resumed_random` that to resume with once
    the data of the epoch have been passed over. `record` holds the settings and the data as checkpoints keep them,
    and `insists` says that a checkpoint was asked for, whatever its data.
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
    savings: Savings | None
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
        """Write the lines that wait because they could not be written before.

        Raises:
            OSError: They still cannot.
        """
        self.history.flush()
        self.decision_log.flush()

    def begin(self) -> None:
        """Take up what was restored of what callbacks and module keep, and say what is not as it was."""
        for note in self.parts.kept.begin() if self.parts.kept is not None else ():
            self.display.warn(note)

    def close(self) -> None:
        """Give back what the training holds beside its results."""
        self.pulse.close()
        self.checkpointer.close()

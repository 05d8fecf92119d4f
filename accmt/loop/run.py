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
from accmt.module import AcceleratorModule
from accmt.monitor import Monitor
from accmt.rules import Decision, RuleEngine
from accmt.states import TrainingState
from accmt.tracking.journal import Journal
from accmt.tracking.tracker import Tracker


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """What the loop itself has to know.

    Attributes:
        log_every: Optimizer steps between two logs, -1 for the end of every epoch, None for never.
        eval_when_start: Evaluate before the first step.
        eval_when_finish: Evaluate after the last step, if evaluations do not happen at the end of epochs anyway.
        train_loss_name, val_loss_name: What trackers call the losses.
        monitor: What trackers are told.
        clean_every: Optimizer steps after which caches are cleaned, besides at evaluations and ends of epochs.
    """

    log_every: int | None
    eval_when_start: bool
    eval_when_finish: bool
    train_loss_name: str
    val_loss_name: str
    monitor: Monitor
    clean_every: int | None


class Checkpointer(Protocol):
    """Makes checkpoints of a run, or does not. Writing may go on in the background."""

    @property
    def is_writing(self) -> bool:
        """Whether something is being written in the background."""
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


class NoCheckpointer:
    """Checkpointing is off."""

    is_writing = False
    has_news = False

    def save(self, run: Run) -> None:
        """Do nothing."""

    def finish(self, run: Run) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


@dataclass(slots=True)
class Run:
    """All parts of a training.

    `model` is the module's own one, in no wrapper, `parts` what a checkpoint is made of, and `generators` those that
    module, model and validation data keep for themselves. `evaluated_at` and
    `checkpointed_at` are the steps of the last evaluation and checkpoint, -1 if there was none. `epoch_random` is the
    random state at the start of the epoch, `resumed_random` that to go on with once the data of an epoch that is
    continued have been passed over. `record` holds the settings and the data as checkpoints keep them, and `insists`
    says that a checkpoint was asked for, whatever its data.
    """

    options: LoopOptions
    module: AcceleratorModule
    model: nn.Module
    parts: Parts
    accelerator: Accelerator
    data: TrainingData
    evaluation: Evaluation
    stepper: Stepper
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
    decisions: list[Decision] = field(default_factory=list)
    evaluated_at: int = -1
    checkpointed_at: int = -1
    resumed: bool = False
    epoch_random: dict[str, torch.Tensor] = field(default_factory=dict)
    resumed_random: dict[str, torch.Tensor] | None = None
    nan_reported: set[str] = field(default_factory=set)
    failed_savings: set[str] = field(default_factory=set)
    data_state_refused: bool = False
    next_stop: float = 0

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

    def close(self) -> None:
        """Leave the groups of processes that a training makes for itself."""
        self.pulse.close()
        self.checkpointer.close()

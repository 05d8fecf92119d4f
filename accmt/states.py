"""A training as modules and callbacks see it: its state, its trainer and its tracker."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from accmt.rules import Decision

Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass
class TrainingState:
    """Progress and results of a training.

    Attributes:
        global_step: Optimizer steps done in the whole training.
        train_step: Index of the current batch in its epoch, from 0.
        val_step: Index of the current batch of an evaluation, from 0.
        epoch: Index of the current epoch, from 0.
        is_end_of_epoch: Whether the optimizer step just done is the last of its epoch.
        is_last_training_batch: Whether the current training batch is the last of its epoch.
        is_last_validation_batch: Whether the current validation batch is the last of its dataset.
        is_last_epoch: Whether the current epoch is the last one.
        evaluations_done: Evaluations done, including one before the first step.
        additional_metrics: Dataset -> metric -> latest value, including `valid_loss`; the same on every process.
        model_savings: Rule -> the values of its objectives when it last saved its best model.
        patience_left: Rule -> remaining evaluations without improvement; -1 for a rule without patience.
        best_train_loss: Lowest mean training loss between two evaluations so far.
        best_valid_loss: Lowest validation loss so far, the mean over the datasets.
        finished: Whether the training has ended.
        num_checkpoints_made: Number of checkpoints made.
    """

    global_step: int = 0
    train_step: int = 0
    val_step: int = 0
    epoch: int = 0
    is_end_of_epoch: bool = False
    is_last_training_batch: bool = False
    is_last_validation_batch: bool = False
    is_last_epoch: bool = False
    evaluations_done: int = 0
    additional_metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    patience_left: dict[str, int] = field(default_factory=dict)
    best_train_loss: float = math.inf
    finished: bool = False
    num_checkpoints_made: int = 0
    model_savings: dict[str, tuple[float, ...]] = field(default_factory=dict, init=False)
    best_valid_loss: float = field(default=math.inf, init=False)


class TrainerProtocol(Protocol):
    """Members of `accmt.Trainer` for modules and callbacks; its methods are described there.

    Attributes:
        model_path: The folder of the training.
        state: The state of the training.
        decisions: The decisions of the training so far.
    """

    @property
    def model_path(self) -> Path: ...
    @property
    def state(self) -> TrainingState: ...
    @property
    def decisions(self) -> list[Decision]: ...

    def stop(self, reason: str = ...) -> None:
        """Stop the training between two steps, as a rule would."""
        ...

    def best(self, rule: str) -> Any:
        """Return the best model that a rule saved: values, step, folder. None if it saved none."""
        ...

    def evaluate(
        self, module: Any, datasets: Any, *, loss_fn: Any = None, metrics: Any = None
    ) -> dict[str, dict[str, float]]:
        """Evaluate a module; nothing is decided, recorded or written."""
        ...

    def log_artifact(self, path: str | Path) -> None:
        """Send a file to the tracker."""
        ...

    def log_artifacts(self, path: str | Path) -> None:
        """Send all files of a folder to the tracker."""
        ...


class Tracker(Protocol):
    """Interface of a tracker for the loop and modules."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send values of an optimizer step."""
        ...

    def log_artifact(self, path: Path) -> None:
        """Send a file."""
        ...

    def log_artifacts(self, folder: Path) -> None:
        """Send all files of a folder."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what a resumed training needs to resume the same run, as JSON."""
        ...

    def close(self, status: Status, time: int | None = None) -> None:
        """End the run, at a time in milliseconds since 1970; None is now."""
        ...

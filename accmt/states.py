"""The state of a training, as modules and callbacks see it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


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

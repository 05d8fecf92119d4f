"""Progress and length of a training."""

from __future__ import annotations

from dataclasses import dataclass

from accmt.rules.codec import Count, Jsonable


@dataclass(frozen=True, slots=True, eq=False)
class Progress(Jsonable):
    """Counters of a training, over the whole training (resumes included).

    Attributes:
        step: Optimizer steps done.
        epoch: Epochs completed.
        step_in_epoch: Optimizer steps done in the current epoch; 0 at the end of an epoch.
        evaluation: Evaluations done, without the one before the first step.
        samples: Training samples seen, without padding.
        elapsed: Active training time in seconds.
    """

    step: Count = 0
    epoch: Count = 0
    step_in_epoch: Count = 0
    evaluation: Count = 0
    samples: Count = 0
    elapsed: float = 0.0


@dataclass(frozen=True, slots=True)
class Length:
    """Length of a training, as far as it is known.

    Attributes:
        total_steps: Optimizer steps of the whole training, None if unknown.
        steps_per_epoch: Optimizer steps of one epoch, None if unknown.
        samples_per_step: Maximum number of samples in one optimizer step, None if unknown.
    """

    total_steps: int | None = None
    steps_per_epoch: int | None = None
    samples_per_step: int | None = None

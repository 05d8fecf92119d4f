"""Progress and length of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from accmt.rules.jsonable import count_from, from_text


@dataclass(frozen=True, slots=True)
class Progress:
    """Counters of a training, over the whole training (resumes included).

    Attributes:
        step: Optimizer steps done.
        epoch: Epochs completed.
        step_in_epoch: Optimizer steps done in the current epoch; 0 at the end of an epoch.
        evaluation: Evaluations done, without the one before the first step.
        samples: Training samples seen, without padding.
        elapsed: Active training time in seconds.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    evaluation: int = 0
    samples: int = 0
    elapsed: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Progress:
        """Restore the counters.

        Raises:
            ValueError, TypeError: A counter is not a non-negative integer, or there is no such counter.
        """
        counters = {name: count_from(value) for name, value in data.items() if name != "elapsed"}
        return cls(**counters, elapsed=from_text(data.get("elapsed", 0.0)))


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

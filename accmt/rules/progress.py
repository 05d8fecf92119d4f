"""How far a training is, and how long it is going to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from accmt.rules.jsonable import count_from, from_text


@dataclass(frozen=True, slots=True)
class Progress:
    """The counters of a training, over the whole training (resumes included).

    Attributes:
        step: Optimizer steps done.
        epoch: Epochs completed.
        step_in_epoch: Optimizer steps done in the epoch that is running; 0 at the end of an epoch.
        evaluation: Evaluations done, without the one before the first step.
        samples: Samples of the training data seen, padding not counted.
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
        """
        Raises:
            ValueError, TypeError: A counter is no whole number from 0 on, or there is no such counter.
        """
        counters = {name: count_from(value) for name, value in data.items() if name != "elapsed"}
        return cls(**counters, elapsed=from_text(data.get("elapsed", 0.0)))


@dataclass(frozen=True, slots=True)
class Length:
    """How long a training is going to be, as far as that is known.

    Attributes:
        total_steps: Optimizer steps of the whole training, None where unknown.
        steps_per_epoch: Optimizer steps of one epoch, None where unknown.
        samples_per_step: The most samples that one optimizer step can take, None where unknown.
    """

    total_steps: int | None = None
    steps_per_epoch: int | None = None
    samples_per_step: int | None = None

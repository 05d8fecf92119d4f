"""Decisions of the engine: values that give their reasons and convert to JSON and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from accmt.rules.codec import INLINE, SPARSE, Count, Jsonable
from accmt.rules.progress import Progress

REQUESTED = "trainer.stop"
"""The asker of a stop that the script asks for, not a rule."""


class Outcome(StrEnum):
    """Outcome of one evaluation under one rule; each is also a text, such as "saved".

    Attributes:
        SAVED: The model was saved.
        NOT_BETTER: It is not better than the one saved last.
        BLOCKED: It is better, and a bound, `if` or `after` forbids it.
        NAN: A value is NaN.
        INACTIVE: The evaluation before the first step, which decides nothing.
        FAILED: It was to be saved, and could not be written.
    """

    SAVED = "saved"
    NOT_BETTER = "not better"
    BLOCKED = "blocked"
    NAN = "nan"
    INACTIVE = "inactive"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, eq=False)
class KeptModel(Jsonable):
    """A model that a rule keeps.

    Attributes:
        values: The value of each objective of the rule.
        evaluation: The number of the evaluation at which it was saved, from 1.
        step: The optimizer step at which it was saved.
    """

    values: tuple[float, ...]
    evaluation: Count
    step: Count

    @property
    def folder(self) -> str:
        """Name of its subfolder if the rule keeps more than one model."""
        return f"evaluation-{self.evaluation:04d}-step-{self.step}"


@dataclass(frozen=True, slots=True, eq=False)
class Verdict(Jsonable):
    """Verdict of one rule on one evaluation.

    Attributes:
        rule: The name of the rule.
        values: The value of each objective.
        incumbent: The values that the candidate had to beat; None if there were none.
        outcome: Whether the model was saved, and if not, why not.
        reason: The reason in words.
        patience_left: Evaluations without improvement that are left; -1 without patience.
        kept: The models that the rule keeps after this evaluation, best first.
    """

    rule: str
    values: tuple[float, ...]
    incumbent: tuple[float, ...] | None
    outcome: Outcome
    reason: str
    patience_left: int = -1
    kept: tuple[KeptModel, ...] = ()

    def __str__(self) -> str:
        return f"{self.rule}: {self.reason}"


@dataclass(frozen=True, slots=True, eq=False)
class Stop(Jsonable):
    """Request to stop the training.

    Attributes:
        asked_by: The rules or the condition that asked for it; "trainer.stop" if the script did.
        reason: The reason in words.
    """

    asked_by: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Decision(Jsonable):
    """Decision at one moment: after an evaluation (with a verdict per rule), a stop between evaluations, or the verdict
    of a rule on the average of its models at the end (`average`).

    Attributes:
        progress: The counters of the training at this moment.
        verdicts: One for each saving rule after an evaluation; otherwise empty.
        checkpoint: Whether a checkpoint is due because of this evaluation.
        stop: Why the training stops; None if it continues.
        average: The verdict on the average of the models that a rule keeps; None if this is no such decision.
    """

    progress: Progress = field(metadata=INLINE)
    verdicts: tuple[Verdict, ...] = ()
    checkpoint: bool = False
    stop: Stop | None = None
    average: Verdict | None = field(default=None, metadata=SPARSE)

    @property
    def all_verdicts(self) -> tuple[Verdict, ...]:
        """The verdicts on models of the training and on an average of them."""
        return self.verdicts if self.average is None else (*self.verdicts, self.average)

    @property
    def saved(self) -> tuple[Verdict, ...]:
        """Verdicts of the rules that save now."""
        return tuple(verdict for verdict in self.verdicts if verdict.outcome is Outcome.SAVED)


@dataclass(frozen=True, slots=True)
class Due:
    """Actions that are due at a step."""

    evaluate: bool = False
    checkpoint: bool = False
    log: bool = False

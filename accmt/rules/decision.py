"""Decisions of the engine: values that give their reasons and convert to JSON and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from accmt.rules.codec import INLINE, SPARSE, Count, Jsonable
from accmt.rules.progress import Progress

REQUESTED = "trainer.stop"
"""The asker of a stop that the script asks for, not a rule."""


class Outcome(StrEnum):
    """Outcome of one evaluation under one rule."""

    SAVED = "saved"
    NOT_BETTER = "not better"
    BLOCKED = "blocked"
    NAN = "nan"
    INACTIVE = "inactive"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, eq=False)
class KeptModel(Jsonable):
    """A model that a rule keeps: its values, and the evaluation and step at which it was saved."""

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
    """Request to stop the training: the rules or the condition that made it, and the reason in words."""

    asked_by: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Decision(Jsonable):
    """Decision at one moment: after an evaluation (with a verdict per rule), a stop between evaluations, or the verdict
    of a rule on the average of its models at the end (`average`)."""

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

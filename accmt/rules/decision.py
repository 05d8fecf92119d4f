"""Decisions of the engine: values that give their reasons and convert to JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from accmt.rules.jsonable import EqualAsJson, count_from, from_text, to_text
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


@dataclass(frozen=True, slots=True)
class Kept:
    """A model that a rule keeps: its values, and the evaluation and step at which it was saved."""

    values: tuple[float, ...]
    evaluation: int
    step: int

    @property
    def folder(self) -> str:
        """Name of its subfolder if the rule keeps more than one model."""
        return f"evaluation-{self.evaluation:04d}-step-{self.step}"

    def to_json(self) -> dict[str, Any]:
        return {"values": [to_text(value) for value in self.values], "evaluation": self.evaluation, "step": self.step}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Kept:
        return cls(
            tuple(from_text(value) for value in data["values"]),
            count_from(data["evaluation"]),
            count_from(data["step"]),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Verdict(EqualAsJson):
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
    kept: tuple[Kept, ...] = ()

    def __str__(self) -> str:
        return f"{self.rule}: {self.reason}"

    def to_json(self) -> dict[str, Any]:
        return {
            "rule": self.rule,
            "values": [to_text(value) for value in self.values],
            "incumbent": None if self.incumbent is None else [to_text(value) for value in self.incumbent],
            "outcome": self.outcome.value,
            "reason": self.reason,
            "patience_left": self.patience_left,
            "kept": [kept.to_json() for kept in self.kept],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Verdict:
        incumbent = data["incumbent"]
        return cls(
            data["rule"],
            tuple(from_text(value) for value in data["values"]),
            None if incumbent is None else tuple(from_text(value) for value in incumbent),
            Outcome(data["outcome"]),
            data["reason"],
            data["patience_left"],
            tuple(Kept.from_json(kept) for kept in data["kept"]),
        )


@dataclass(frozen=True, slots=True)
class Stop:
    """Request to stop the training: the rules or the condition that made it, and the reason in words."""

    asked_by: str
    reason: str

    def to_json(self) -> dict[str, str]:
        return {"asked_by": self.asked_by, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Decision:
    """Decision at one moment: after an evaluation (with a verdict per rule), or a stop between evaluations."""

    progress: Progress
    verdicts: tuple[Verdict, ...] = ()
    checkpoint: bool = False
    stop: Stop | None = None

    @property
    def saved(self) -> tuple[Verdict, ...]:
        """Verdicts of the rules that save now."""
        return tuple(verdict for verdict in self.verdicts if verdict.outcome is Outcome.SAVED)

    def to_json(self) -> dict[str, Any]:
        return {
            **self.progress.to_json(),
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
            "checkpoint": self.checkpoint,
            "stop": None if self.stop is None else self.stop.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Decision:
        counters = {name: data[name] for name in Progress.__dataclass_fields__}
        stop = data["stop"]
        return cls(
            Progress(**counters),
            tuple(Verdict.from_json(verdict) for verdict in data["verdicts"]),
            data["checkpoint"],
            None if stop is None else Stop(**stop),
        )


@dataclass(frozen=True, slots=True)
class Due:
    """Actions that are due at a step."""

    evaluate: bool = False
    checkpoint: bool = False
    log: bool = False

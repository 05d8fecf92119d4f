"""What a display shows of a training before its first step, and at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Header:
    """Description of a training before its first step.

    Attributes:
        facts: Name -> value, such as the optimizer and the precision.
        rules: Rule -> the rule in words.
        notes: Changes since the checkpoint.
    """

    facts: Mapping[str, str]
    rules: Mapping[str, str]
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Objective:
    """An objective of a rule: its value when the best model was saved (None if none was), and at each evaluation."""

    name: str
    best: float | None
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class RuleResult:
    """The best model that a rule has saved: its objectives, when it was saved, and its folder; None if none was."""

    rule: str
    objectives: Sequence[Objective]
    when: str
    folder: Path | None


@dataclass(frozen=True, slots=True)
class Summary:
    """Result of a training: one result for each rule, the folder of the training, and why it ended."""

    rules: Sequence[RuleResult]
    model_path: Path
    end: str

"""What the constructor of the trainer turns its arguments into: small groups, one for each part that reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from accmt.callbacks import Callback
from accmt.hyperparameters import HyperParameters
from accmt.loop.data import DataOptions
from accmt.loop.run import LoopOptions
from accmt.loop.step import StepOptions
from accmt.metrics.metric import Metric
from accmt.rules import CadenceRule, SavingRule, StopCondition


@dataclass(frozen=True, slots=True)
class CheckpointOptions:
    """Whether and how often to checkpoint, how many to keep, and what to continue from."""

    enabled: bool
    every: CadenceRule | None
    keep: int | None
    resume: bool | int | None


@dataclass(frozen=True, slots=True)
class SavingOptions:
    """What every saving rule has in common."""

    disabled: bool
    safe_serialization: bool
    patience: int | Mapping[str, int] | None


@dataclass(frozen=True, slots=True)
class RuleOptions:
    """The rules that arguments and the configuration declare; saving rules may be registered besides."""

    savings: tuple[SavingRule, ...]
    evaluate: CadenceRule
    stop_when: tuple[StopCondition, ...]


@dataclass(frozen=True, slots=True)
class TrackingOptions:
    """Which tracker, and what it is told at the start."""

    log_with: str | None
    logging_dir: str
    track_name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Options:
    """All arguments of a trainer."""

    hps: HyperParameters
    checkpoint: CheckpointOptions
    saving: SavingOptions
    rules: RuleOptions
    data: DataOptions
    step: StepOptions
    loop: LoopOptions
    tracking: TrackingOptions
    accumulation: int
    metrics: Mapping[str | None, Sequence[Metric]]
    callbacks: tuple[Callback, ...]
    destroy: bool

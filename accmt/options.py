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
    """Whether and how often to checkpoint, how many to keep, what to continue from, whether to write them while the
    training goes on, whether those of DeepSpeed are read whatever they execute, and whether one is made when an
    exception ends the training."""

    enabled: bool
    every: CadenceRule | None
    keep: int | None
    resume: bool | int | None
    in_background: bool
    trusts: bool
    on_exception: bool


@dataclass(frozen=True, slots=True)
class SavingOptions:
    """What every saving rule has in common."""

    disabled: bool
    safe_serialization: bool
    max_shard_size: str
    patience: int | Mapping[str, int] | None


@dataclass(frozen=True, slots=True)
class RuleOptions:
    """The rules that arguments and the configuration declare; saving rules may be registered besides."""

    savings: tuple[SavingRule, ...]
    evaluate: CadenceRule
    stop_when: tuple[StopCondition, ...]
    log: CadenceRule | None


@dataclass(frozen=True, slots=True)
class TrackingOptions:
    """Which trackers, each with the arguments of its run, and what they are told at the start.

    `folder` is for those that need one where `logging_dir` is an address. `names` are what they have in `model_path`.
    """

    trackers: Mapping[str, Mapping[str, Any]]
    logging_dir: str
    folder: str
    track_name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    names: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How the model is made ready for training.

    Attributes:
        gradient_checkpointing: Whether to compute activations again in the backward pass instead of keeping them.
        gradient_checkpointing_kwargs: Arguments of the model's `gradient_checkpointing_enable`.
        compile_kwargs: Arguments of torch.compile; None for a model that is not compiled.
        mixed_precision: "no", "fp16" or "bf16"; None for what the launcher says.
        through_wrapper: The module calls the prepared model, not the bare one.
        logs_preparation: Whether libraries may log while they prepare the model.
    """

    gradient_checkpointing: bool
    gradient_checkpointing_kwargs: dict[str, Any] | None
    compile_kwargs: dict[str, Any] | None
    mixed_precision: str | None
    through_wrapper: bool
    logs_preparation: bool


@dataclass(frozen=True, slots=True)
class Options:
    """All arguments of a trainer; `given` holds them as they were given, by name."""

    hps: HyperParameters
    checkpoint: CheckpointOptions
    saving: SavingOptions
    rules: RuleOptions
    data: DataOptions
    model: ModelOptions
    step: StepOptions
    loop: LoopOptions
    tracking: TrackingOptions
    accumulation: int
    training_metrics: Mapping[str, bool]
    metrics: Mapping[str | None, Sequence[Metric]]
    callbacks: tuple[Callback, ...]
    destroy: bool
    quiet: bool
    given: Mapping[str, Any] = field(default_factory=dict)

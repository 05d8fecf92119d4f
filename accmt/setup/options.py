"""Options that the trainer's constructor builds from its arguments: one small group for each part that reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from accmt.callbacks import Callback
from accmt.data.loaders import DataOptions
from accmt.hyperparameters import HyperParameters
from accmt.loop.profiling import ProfileOptions
from accmt.loop.run import LoopOptions
from accmt.loop.step import StepOptions
from accmt.metrics.metric import Metric
from accmt.rules import CadenceRule, SavingRule, StopCondition


@dataclass(frozen=True, slots=True)
class CheckpointOptions:
    """Options of checkpoints: how often to make them (None for never), how many to keep, what to resume from, whether
    to write in the background, whether to trust DeepSpeed's pickles, and whether to make one when an exception ends
    the training."""

    every: CadenceRule | None
    keep: int | None
    resume: bool | int | None
    in_background: bool
    trusts: bool
    on_exception: bool

    @property
    def enabled(self) -> bool:
        return self.every is not None

    @property
    def goes_back(self) -> bool:
        """True if the user chose the checkpoint by its number, so that later ones may exist."""
        return type(self.resume) is int and self.resume > 0


@dataclass(frozen=True, slots=True)
class SavingOptions:
    """Options that all saving rules share."""

    disabled: bool
    safe_serialization: bool
    max_shard_size: str
    patience: int | Mapping[str, int] | None
    restored: bool | str


@dataclass(frozen=True, slots=True)
class RuleOptions:
    """Rules from the arguments and the configuration; more saving rules may be registered."""

    savings: tuple[SavingRule, ...]
    evaluate: CadenceRule
    stop_when: tuple[StopCondition, ...]
    log: CadenceRule | None
    replicates: int


@dataclass(frozen=True, slots=True)
class TrackingOptions:
    """Trackers to use, each with the arguments of its run, and the values they get at the start.

    `folder` is used by trackers that need one when `logging_dir` is a URL. `names` are their names in `model_path`.
    """

    trackers: Mapping[str, Mapping[str, Any]]
    logging_dir: str
    folder: str
    track_name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    names: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Options for preparing the model.

    Attributes:
        gradient_checkpointing: Whether to recompute activations in the backward pass instead of storing them.
        gradient_checkpointing_kwargs: Arguments of the model's `gradient_checkpointing_enable`.
        compile_kwargs: Arguments of torch.compile; None to not compile the model.
        mixed_precision: "no", "fp16" or "bf16"; None for the launcher's setting.
        logs_preparation: Whether libraries may log while they prepare the model.
    """

    gradient_checkpointing: bool
    gradient_checkpointing_kwargs: dict[str, Any] | None
    compile_kwargs: dict[str, Any] | None
    mixed_precision: str | None
    logs_preparation: bool


@dataclass(frozen=True, slots=True)
class Options:
    """All options of a trainer; `given` holds the arguments as they were passed, by name."""

    hps: HyperParameters
    checkpoint: CheckpointOptions
    saving: SavingOptions
    rules: RuleOptions
    data: DataOptions
    model: ModelOptions
    step: StepOptions
    loop: LoopOptions
    tracking: TrackingOptions
    accumulation: int | Mapping[int, int]
    training_metrics: Mapping[str, bool]
    metrics: Mapping[str | None, Sequence[Metric]]
    callbacks: tuple[Callback, ...]
    destroy: bool
    quiet: bool
    report: bool = False
    held_out: tuple[str, ...] = ()
    seed: int | None = None
    profile: ProfileOptions | None = None
    given: Mapping[str, Any] = field(default_factory=dict)

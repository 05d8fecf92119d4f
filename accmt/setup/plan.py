"""Plan of a training: everything that needs no file, built and checked before anything is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import Dataset, IterableDataset, Sampler

from accmt.checkpoint.checkpoints import Checkpoints, NoCheckpoint
from accmt.checkpoint.extra_state import ExtraState
from accmt.checkpoint.format import AVERAGE, ModelParts
from accmt.checkpoint.optimizer_state import NamedOptimizer
from accmt.config.errors import must_be
from accmt.config.rules import REPLICATES_DEFAULT
from accmt.data.generators import inexact
from accmt.data.loaders import TrainingData, is_several, training_loader, without_workers
from accmt.data.user_loaders import check_alike, whole
from accmt.data.validation import ValidationData, validation_loaders
from accmt.display.display import Display, display_of
from accmt.distributed.collective import agreed
from accmt.distributed.process_group import join_processes
from accmt.distributed.strategy import is_deepspeed, shards_model
from accmt.hyperparameters import ConfigError, Problem
from accmt.loop.learning_rate import Schedule
from accmt.loop.moving_average import MovingAverage
from accmt.loop.progress import TrainingPosition
from accmt.loop.trainable_parameters import Beside
from accmt.module import AcceleratorModule, ExtendedAcceleratorModule
from accmt.rules import Facts, Length, RuleError, Rules, SavingRule, assign_patience, check, replicated
from accmt.rules.checker import meetings
from accmt.setup.best import check_averages, check_loading, check_restoring
from accmt.setup.inputs import facts_of
from accmt.setup.optimizer import check_scheduler, optimizer_of
from accmt.setup.options import Options
from accmt.setup.parts_check import check_beside, check_parts
from accmt.setup.plain_module import with_default_metrics
from accmt.setup.pretrained import check_extras, notes_of
from accmt.setup.settings import Settings, configuration


@dataclass(frozen=True, slots=True)
class Plan:
    """A training that has passed all checks that need no file; nothing has been touched yet.

    `loaders` are those of the datasets that are evaluated during the training, `held_out` those of the others.
    """

    options: Options
    model_path: Path
    module: AcceleratorModule
    accelerator: Accelerator
    data: TrainingData
    loaders: Mapping[str, ValidationData]
    held_out: Mapping[str, ValidationData]
    position: TrainingPosition
    rules: Rules
    facts: Facts
    optimizer: Any
    schedule: Schedule
    settings: Settings
    parts: ModelParts
    display: Display
    beside: Beside
    warnings: tuple[str, ...]

    @property
    def validation(self) -> dict[str, ValidationData]:
        """The loaders of all validation data."""
        return {**self.loaders, **self.held_out}

    def close(self) -> None:
        """Stop the data-loading processes, even if the traceback of an error still references them."""
        self.data.close()
        for loader in self.validation.values():
            loader.close()


def plan(
    options: Options,
    model_path: Path,
    savings: Sequence[SavingRule],
    module: AcceleratorModule,
    train_dataset: Dataset[Any] | None,
    datasets: Mapping[str, Dataset[Any]],
) -> Plan:
    """Build everything that needs no file, and check the rules against the training.

    Raises:
        ConfigError, RuleError: If something cannot work.
        NoCheckpoint: If a checkpoint is required and there is none.
    """
    accelerator = join_processes(options.model.mixed_precision)
    _check_engine(options, module, accelerator)
    data = _training_data(options, module, train_dataset)
    loaders = validation_loaders(options.data, module, datasets, lambda: data.seed)
    options = with_default_metrics(options, module, loaders)
    position = TrainingPosition(data, options.hps.epochs, options.hps.max_steps)
    length = Length(position.total_steps, data.steps_per_epoch, data.samples_per_step)
    facts = facts_of(
        options.metrics,
        tuple(datasets),
        length,
        options.training_metrics,
        options.held_out,
        options.rules.replicates,
    )
    rules = _rules(options, savings, facts)
    check_restoring(options, rules, accelerator)
    check_loading(options, accelerator)
    check_averages(rules, module, accelerator)
    warnings = [*map(str, check(rules, facts)), *_without_effect(options, rules, facts), *notes_of(module)]
    warnings += _warnings_of_data(options, data, loaders)
    optimizer, schedule, is_ours = optimizer_of(options, module, data, position, accelerator)
    check_scheduler(schedule.scheduler, options, facts)
    parts = _parts(options, module, optimizer, schedule, accelerator)
    check_beside(options, module, optimizer, parts, accelerator, is_ours=is_ours)
    check_parts(options, parts)
    if not options.saving.disabled:
        check_extras(module, options)
    _require_checkpoint(options, model_path)
    insists = options.checkpoint.resume is not None
    return Plan(
        options,
        model_path,
        module,
        accelerator,
        data,
        {key: loaders[key] for key in facts.datasets},
        {key: loaders[key] for key in facts.held_out},
        position,
        rules,
        facts,
        optimizer,
        schedule,
        Settings(configuration(options, module), data, schedule, insists=insists),
        parts,
        display_of(is_main=accelerator.is_main_process, quiet=options.quiet),
        _beside(options, module, parts, optimizer, is_ours=is_ours),
        tuple(warnings),
    )


def _warnings_of_data(options: Options, data: TrainingData, loaders: Mapping[str, ValidationData]) -> list[str]:
    """Return what may be inexact or slow about the data."""
    warnings = inexact(data.loader) if options.checkpoint.enabled else []
    if options.checkpoint.enabled and data.outruns_epochs:
        text = "limit_train_batches cuts data that keep a state: a resume after the first epoch may not be exact"
        warnings = [*warnings, text]
    return [*warnings, *without_workers(options.data, [data.loader, *(each.loader for each in loaders.values())])]


def _require_checkpoint(options: Options, model_path: Path) -> None:
    """Raise NoCheckpoint if a checkpoint is required and there is none."""
    checkpoints, resume = Checkpoints(model_path), options.checkpoint.resume
    if resume and not checkpoints.all():
        raise NoCheckpoint(f"resume={resume}, but there is no checkpoint in {checkpoints.folder}")


def _training_data(options: Options, module: AcceleratorModule, dataset: Dataset[Any] | None) -> TrainingData:
    loader = module.get_train_dataloader(dataset)
    if loader is None:
        if dataset is None:
            raise ConfigError(
                [Problem("train_dataset", "is missing, and get_train_dataloader returned no loader")], "fit(...)"
            )
        _check_sampler(options.data.sampler, dataset)
        collate = module.collate_fn_train or options.data.collate_train
        loader = training_loader(dataset, options.data, collate)
    loader = whole(loader, "train_dataset")
    check_alike(loader, "train_dataset")
    data = TrainingData(loader, options.accumulation, agreed_seed(), options.data.limit_train)
    if data.batches_per_epoch == 0:
        text = "has no whole batch: with dataloader_drop_last the batch must not be larger than the dataset"
        raise ConfigError([Problem("train_dataset", text)], "fit(...)")
    return data


def _check_sampler(sampler: Any, dataset: Dataset[Any]) -> None:
    problem = None
    if sampler is not None and isinstance(dataset, IterableDataset):
        problem = "an IterableDataset has its own order: leave the sampler out"
    elif is_several(sampler) and not all(isinstance(item, Sampler) for item in sampler):
        problem = "a list of samplers must contain only samplers"
    elif sampler is not None and (isinstance(sampler, type) or not hasattr(sampler, "__iter__")):
        problem = must_be("a sampler, a list of samplers, or a list of indices", sampler)
    if problem is not None:
        raise ConfigError([Problem("sampler", problem)], "fit(...)")


def agreed_seed() -> int:
    """Return the main process's seed on all processes."""
    return agreed(torch.initial_seed() % 2**31)


def _rules(options: Options, savings: Sequence[SavingRule], facts: Facts) -> Rules:
    default = SavingRule.parse("best_valid_loss" if facts.datasets else "best_train_loss")
    registered = tuple(savings) or (default,)
    patience = options.saving.patience
    given = dict(patience) if isinstance(patience, Mapping) else patience
    evaluate = options.rules.evaluate if facts.datasets else None
    checkpoint = options.checkpoint.every
    savings = assign_patience(registered, given, facts.held_out)
    if problems := list(meetings(savings, options.tracking.names)):
        raise RuleError(problems)
    writes = not options.saving.disabled
    return Rules(savings, options.rules.stop_when, evaluate, checkpoint, writes=writes, log=options.rules.log)


def _without_effect(options: Options, rules: Rules, facts: Facts) -> list[str]:
    """Warn about arguments that have no effect: those for standard errors if no rule asks for one, and those that need
    validation data when there are none."""
    warnings = []
    if options.rules.replicates != REPLICATES_DEFAULT and not replicated(rules, facts):
        warnings.append("replicates has no effect: no rule asks for standard errors, such as by 2 se")
    if facts.datasets:
        return warnings
    asked = {"metrics": any(options.metrics.values()), "evaluate_every": options.rules.evaluate.text != "epoch"}
    names = [name for name, is_asked in asked.items() if is_asked]
    return warnings + ([f"there are no validation data: {' and '.join(names)} have no effect"] if names else [])


def _parts(
    options: Options, module: AcceleratorModule, optimizer: Any, schedule: Schedule, accelerator: Accelerator
) -> ModelParts:
    kept = ExtraState(
        module, module.model, options.callbacks, [optimizer, schedule.scheduler, accelerator, accelerator.scaler]
    )
    named = NamedOptimizer(optimizer, kept.parameters)
    decay = options.step.ema_decay
    average = None if decay is None else MovingAverage(decay, kept.parameters)
    stateful = {"optimizer": named, "scheduler": schedule, "scaler": accelerator.scaler, AVERAGE: average}
    return ModelParts(module.model, {name: part for name, part in stateful.items() if part is not None}, kept)


def _beside(options: Options, module: AcceleratorModule, parts: ModelParts, optimizer: Any, *, is_ours: bool) -> Beside:
    """Return what is trained besides the parameters that the optimizer holds at the start."""
    model, hps = module.model, options.hps

    def extend(added: Sequence[nn.Parameter]) -> None:
        hps.extend_optimizer(optimizer, model.named_parameters(), added)

    return Beside(parts.kept.parameters, parts.kept.left_to_trainer, extend if is_ours else None)


def _check_engine(options: Options, module: AcceleratorModule, accelerator: Accelerator) -> None:
    """Check that checkpoints and steps can be made as asked for.

    Raises:
        ConfigError: They cannot.
    """
    if options.checkpoint.in_background and is_deepspeed(accelerator):
        text = "DeepSpeed writes its part of a checkpoint while the training waits: leave it out"
        raise ConfigError([Problem("checkpoint_async", text)], "Trainer(...)")
    if options.step.clip_value is not None and (is_deepspeed(accelerator) or shards_model(accelerator)):
        text = "DeepSpeed and FSDP clip gradients by their norm only: leave it out, and give clip_grad"
        raise ConfigError([Problem("clip_grad_value", text)], "Trainer(...)")
    if options.checkpoint.on_exception and (is_deepspeed(accelerator) or shards_model(accelerator)):
        text = "a failed step of a sharded model does not leave a complete model: leave it out"
        raise ConfigError([Problem("checkpoint_on_exception", text)], "Trainer(...)")
    if options.step.ema_decay is not None and (is_deepspeed(accelerator) or shards_model(accelerator)):
        text = "DeepSpeed and FSDP hold the weights in parts, which are not averaged: leave it out"
        raise ConfigError([Problem("ema_decay", text)], "Trainer(...)")
    if options.step.ema_decay is not None and isinstance(module, ExtendedAcceleratorModule):
        text = f"{type(module).__name__} makes its optimizer steps itself, which are not averaged: leave it out"
        raise ConfigError([Problem("ema_decay", text)], "Trainer(...)")

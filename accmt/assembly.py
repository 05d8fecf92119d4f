"""From options, a module and datasets to a run: every check first, then the parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from accmt.checkpoint import publish
from accmt.checkpoint.aside import put_aside
from accmt.checkpoint.checkpoints import FOLDER, Checkpoint, Checkpoints, NoCheckpoint
from accmt.checkpoint.contents import Parts
from accmt.checkpoint.packing import pack
from accmt.checkpoint.savings import Savings
from accmt.checkpoint.together import from_main
from accmt.config.errors import did_you_mean, must_be
from accmt.display.display import ConsoleDisplay, Display, NoDisplay
from accmt.hyperparameters import ConfigError, Problem
from accmt.loop.checkpointer import DiskCheckpointer, restore, tracker_state
from accmt.loop.data import TrainingData, share, training_loader, validation_loader
from accmt.loop.hooks import Hooks
from accmt.loop.position import Position
from accmt.loop.processes import SharedClock, join_processes
from accmt.loop.run import Checkpointer, NoCheckpointer, Run, Validation
from accmt.loop.step import Stepper
from accmt.metrics.metric import Metric
from accmt.module import AcceleratorModule
from accmt.options import Options
from accmt.rules import Facts, Length, Reported, RuleEngine, Rules, SavingRule, assign_patience, check
from accmt.rules.store import VALID_LOSS
from accmt.states import TrainingState
from accmt.tracking.description import Description, write_description
from accmt.tracking.journal import DECISIONS, HISTORY, Journal
from accmt.tracking.tracker import GuardedTracker, NoTracker, Tracker


@dataclass(frozen=True, slots=True)
class Plan:
    """A training that has passed all checks that need no file, and has touched nothing."""

    options: Options
    model_path: Path
    module: AcceleratorModule
    accelerator: Accelerator
    data: TrainingData
    validation: Validation
    position: Position
    rules: Rules
    facts: Facts
    optimizer: Any
    scheduler: Any | None
    parts: Parts
    warnings: tuple[str, ...]


def check_fit(options: Options, module: Any, train_dataset: Any, val_dataset: Any) -> dict[str, Dataset[Any]]:
    """Check what `fit` was given and name the validation datasets.

    Raises:
        ConfigError: With all problems.
    """
    problems: list[Problem] = []
    if isinstance(module, type) and issubclass(module, AcceleratorModule):
        problems.append(Problem("module", f"is the class {module.__name__}: give an object of it, {module.__name__}()"))
    elif not isinstance(module, AcceleratorModule):
        problems.append(Problem("module", f"must be an AcceleratorModule, not {type(module).__name__}"))
    else:
        problems += _module_problems(module, train_dataset, val_dataset)
    datasets = _named(val_dataset, problems)
    if train_dataset is not None:
        problems += _dataset_problems("train_dataset", train_dataset)
    for key, dataset in datasets.items():
        problems += _dataset_problems("val_dataset" if dataset is val_dataset else f"val_dataset['{key}']", dataset)
    problems += _metric_problems(options.metrics, datasets)
    if problems:
        raise ConfigError(problems, "fit(...)")
    return datasets


def _module_problems(module: AcceleratorModule, train_dataset: Any, val_dataset: Any) -> list[Problem]:
    kind, problems = type(module), []
    if not isinstance(getattr(module, "model", None), nn.Module):
        problems.append(Problem(kind.__name__, "has no model: set self.model to a torch.nn.Module in its constructor"))
    if kind.training_step is AcceleratorModule.training_step:
        problems.append(Problem(kind.__name__, "has no training_step(self, batch)"))
    if val_dataset is not None and kind.validation_step is AcceleratorModule.validation_step:
        problems.append(Problem(kind.__name__, "has no validation_step(self, key, batch), and val_dataset is given"))
    if train_dataset is None and kind.get_train_dataloader is AcceleratorModule.get_train_dataloader:
        problems.append(Problem("train_dataset", "is missing, and the module has no get_train_dataloader"))
    return problems


def _named(val_dataset: Any, problems: list[Problem]) -> dict[str, Dataset[Any]]:
    """Key -> dataset; keys are text, a list has "0", "1", ..., and a single dataset "0"."""
    if val_dataset is None:
        return {}
    if isinstance(val_dataset, Mapping):
        named: dict[str, Dataset[Any]] = {}
        for key, dataset in val_dataset.items():
            if str(key) in named:
                problems.append(Problem("val_dataset", f"has two keys that read '{key}'"))
            named[str(key)] = dataset
        return named
    listed = val_dataset if isinstance(val_dataset, list | tuple) else [val_dataset]
    return {str(index): dataset for index, dataset in enumerate(listed)}


def _dataset_problems(name: str, dataset: Any) -> list[Problem]:
    if isinstance(dataset, DataLoader):
        return [Problem(name, "is a DataLoader: give its dataset, or return the loader from the module's hook")]
    if isinstance(dataset, IterableDataset):
        return []
    if isinstance(dataset, str) or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        wanted = "a dataset with __getitem__ and __len__, or a torch IterableDataset"
        return [Problem(name, must_be(wanted, dataset))]
    return [Problem(name, "is empty")] if len(dataset) == 0 else []


def _metric_problems(
    metrics: Mapping[str | None, Sequence[Metric]], datasets: Mapping[str, Dataset[Any]]
) -> list[Problem]:
    problems = []
    for key in metrics:
        if key is not None and datasets and key not in datasets:
            known = ", ".join(datasets)
            problems.append(
                Problem("metrics", f"'{key}' is no dataset{did_you_mean(key, datasets)} There are: {known}")
            )
    directions: dict[str, bool] = {}
    for key in datasets:
        seen: set[str] = set()
        for metric in _metrics_on(metrics, key):
            name = metric.main_metric
            if type(metric).compute is Metric.compute:
                problems.append(
                    Problem("metrics", f"{type(metric).__name__} '{metric.name}' has no compute(self, ...)")
                )
            if name in seen or name in (VALID_LOSS, "train_loss", "loss"):
                what = "is given twice" if name in seen else "has a name that is taken by the losses"
                problems.append(Problem("metrics", f"'{name}' {what} (dataset '{key}')"))
            if directions.setdefault(name, metric.greater_is_better) != metric.greater_is_better:
                problems.append(Problem("metrics", f"'{name}' is better in different directions on different datasets"))
            seen.add(name)
    return problems


def _metrics_on(metrics: Mapping[str | None, Sequence[Metric]], key: str) -> list[Metric]:
    return [*metrics.get(None, ()), *metrics.get(key, ())]


def plan(
    options: Options,
    model_path: Path,
    savings: Sequence[SavingRule],
    module: AcceleratorModule,
    train_dataset: Dataset[Any] | None,
    datasets: Mapping[str, Dataset[Any]],
) -> Plan:
    """Make what can be made without touching a file, and check the rules against the training.

    Raises:
        ConfigError, RuleError: Something cannot work.
        NoCheckpoint: There is nothing to continue from, and there must be.
    """
    accelerator = join_processes()
    data = _training_data(options, module, train_dataset)
    position = Position(data, options.hps.epochs, options.hps.max_steps)
    facts = _facts(options, datasets, data, position)
    rules = _rules(options, savings, facts)
    warnings = tuple(str(warning) for warning in check(rules, facts))
    optimizer, scheduler = _optimizer(options, module, data, position)
    if options.checkpoint.resume and not Checkpoints(model_path).all():
        folder = Checkpoints(model_path).folder
        raise NoCheckpoint(f"resume={options.checkpoint.resume}, but there is no checkpoint in {folder}")
    return Plan(
        options,
        model_path,
        module,
        accelerator,
        data,
        _validation(options, module, datasets),
        position,
        rules,
        facts,
        optimizer,
        scheduler,
        _parts(module, optimizer, scheduler, accelerator),
        warnings,
    )


def assemble(plan: Plan, state: TrainingState) -> tuple[Run, list[str]]:
    """Put the parts of a run together and continue from its checkpoint, if it has one. The lock must be held.

    Returns:
        The run, and what is worth saying before it starts, one line each.

    Raises:
        NoCheckpoint, Mismatch: The checkpoint to continue from cannot be used.
    """
    options, module, accelerator = plan.options, plan.module, plan.accelerator
    from_main(lambda: _clear_away(plan.model_path, plan.rules))
    checkpoints = Checkpoints(plan.model_path)
    resume = from_main(lambda: _checkpoint(options, checkpoints))
    main = accelerator.is_main_process
    module.model, optimizer = accelerator.prepare(module.model, plan.optimizer)
    if module.teacher is not None:
        module.teacher = module.teacher.to(accelerator.device).eval().requires_grad_(False)
    module.state, module.device, module.accelerator = state, accelerator.device, accelerator
    display: Display = ConsoleDisplay() if main else NoDisplay()
    module.tracker = _tracker(options, resume, display)
    module._log_every = options.loop.log_every if options.loop.log_every != -1 else plan.data.steps_per_epoch
    hooks = Hooks(options.callbacks, state)
    run = Run(
        options=options.loop,
        module=module,
        accelerator=accelerator,
        data=plan.data,
        validation=plan.validation,
        stepper=Stepper(module, accelerator, optimizer, plan.scheduler, options.step, hooks, state),
        position=plan.position,
        engine=RuleEngine(plan.rules, plan.facts),
        state=state,
        hooks=hooks,
        savings=None if options.saving.disabled else Savings(plan.model_path, options.saving.safe_serialization),
        checkpointer=_checkpointer(options, checkpoints, plan.parts),
        history=Journal(plan.model_path / HISTORY, writes=main),
        decision_log=Journal(plan.model_path / DECISIONS, writes=main),
        tracker=module.tracker,
        display=display,
        clock=SharedClock(plan.position.stopwatch.elapsed),
    )
    state.patience_left = run.engine.patience_left()
    description = Description(plan.rules, plan.facts, options.loop.log_every)
    if resume is not None:
        notes = restore(run, resume.path, plan.parts)
        from_main(lambda: write_description(plan.model_path, description))
        return run, [f"continuing from {resume.path.name}", *notes, *plan.warnings]
    aside = from_main(lambda: put_aside(plan.model_path))
    run.history.cut(0)
    run.decision_log.cut(0)
    from_main(lambda: write_description(plan.model_path, description))
    plan.position.stopwatch.set(0.0)
    notes = [] if aside is None else [f"the checkpoints and the history of the earlier training are now in {aside}"]
    return run, [*notes, *plan.warnings]


def _clear_away(model_path: Path, rules: Rules) -> None:
    """Remove what an earlier training left behind when it died."""
    for folder in (model_path, model_path / FOLDER, *(model_path / rule.folder for rule in rules.savings)):
        publish.recover(folder)


def _training_data(options: Options, module: AcceleratorModule, dataset: Dataset[Any] | None) -> TrainingData:
    loader = module.get_train_dataloader(dataset)
    if loader is None:
        if dataset is None:
            raise ConfigError(
                [Problem("train_dataset", "is missing, and get_train_dataloader gave no loader")], "fit(...)"
            )
        _check_sampler(options.data.sampler, dataset)
        collate = module.collate_fn_train or options.data.collate_train
        loader = training_loader(dataset, options.data, collate)
    seed = [torch.initial_seed() % 2**31]
    if PartialState().num_processes > 1:
        broadcast_object_list(seed)
    data = TrainingData(loader, options.accumulation, seed[0])
    if data.batches_per_epoch == 0:
        text = "has no whole batch: with dataloader_drop_last the batch must not be larger than the dataset"
        raise ConfigError([Problem("train_dataset", text)], "fit(...)")
    return data


def _check_sampler(sampler: Any, dataset: Dataset[Any]) -> None:
    problem = None
    if sampler is not None and isinstance(dataset, IterableDataset):
        problem = "an IterableDataset brings its own order: leave the sampler out"
    elif isinstance(sampler, list | tuple) and any(isinstance(item, Sampler) for item in sampler):
        problem = "a list of samplers is not taken yet: give one sampler, or a list of indices"
    elif sampler is not None and not hasattr(sampler, "__iter__"):
        problem = must_be("a sampler or a list of indices", sampler)
    if problem is not None:
        raise ConfigError([Problem("sampler", problem)], "fit(...)")


def _validation(options: Options, module: AcceleratorModule, datasets: Mapping[str, Dataset[Any]]) -> Validation:
    loaders: dict[str, DataLoader[Any]] = {}
    for key, dataset in datasets.items():
        collate = module.collate_fn_val or options.data.collate_val
        loader = module.get_validation_dataloader(dataset) or validation_loader(dataset, options.data, collate)
        loaders[key] = share(loader, even=False)
    return Validation(loaders, {key: _metrics_on(options.metrics, key) for key in datasets})


def _facts(options: Options, datasets: Mapping[str, Dataset[Any]], data: TrainingData, position: Position) -> Facts:
    keys = tuple(datasets)
    reported: dict[str, Reported] = {}
    for key in keys:
        for metric in _metrics_on(options.metrics, key):
            before = reported.get(metric.main_metric, Reported((), metric.greater_is_better))
            reported[metric.main_metric] = Reported((*before.datasets, key), metric.greater_is_better)
    if keys:
        reported[VALID_LOSS] = Reported(keys, greater_is_better=False)
    length = Length(position.total_steps, data.steps_per_epoch, data.samples_per_step)
    return Facts(reported, keys, length)


def _rules(options: Options, savings: Sequence[SavingRule], facts: Facts) -> Rules:
    default = SavingRule.parse("best_valid_loss" if facts.datasets else "best_train_loss")
    registered = tuple(savings) or (default,)
    patience = options.saving.patience
    given = dict(patience) if isinstance(patience, Mapping) else patience
    evaluate = options.rules.evaluate if facts.datasets else None
    checkpoint = options.checkpoint.every
    return Rules(assign_patience(registered, given), options.rules.stop_when, evaluate, checkpoint)


def _optimizer(
    options: Options, module: AcceleratorModule, data: TrainingData, position: Position
) -> tuple[Any, Any | None]:
    optimizer = module.get_optimizer() or options.hps.build_optimizer(module.model.named_parameters())
    _check_optimizer(optimizer, module)
    epochs = position.total_epochs or options.hps.epochs
    scheduler = options.hps.build_scheduler(
        optimizer, steps_per_epoch=data.steps_per_epoch, total_steps=position.total_steps, epochs=epochs
    )
    return optimizer, scheduler


def _check_optimizer(optimizer: Any, module: AcceleratorModule) -> None:
    kind = type(optimizer).__name__
    if isinstance(optimizer, torch.optim.LBFGS):
        text = "LBFGS evaluates the loss several times a step, which this loop does not do: choose another optimizer"
        raise ConfigError([Problem("optimizer", text)], "fit(...)")
    own = {id(parameter) for parameter in module.model.parameters()}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not any(id(parameter) in own for parameter in held):
        text = f"{kind} holds no parameter of {type(module).__name__}.model: nothing would be trained"
        raise ConfigError([Problem("get_optimizer", text)], "fit(...)")


def _parts(module: AcceleratorModule, optimizer: Any, scheduler: Any | None, accelerator: Accelerator) -> Parts:
    stateful = {"optimizer": optimizer, "scheduler": scheduler, "scaler": accelerator.scaler}
    stateful = {name: part for name, part in stateful.items() if part is not None}
    for name, part in stateful.items():
        try:
            pack(part.state_dict())
        except TypeError as error:
            raise ConfigError([Problem(name, f"its state {error}")], "fit(...)") from None
    return Parts(module.model, stateful)


def _checkpointer(options: Options, checkpoints: Checkpoints, parts: Parts) -> Checkpointer:
    if not options.checkpoint.enabled:
        return NoCheckpointer()
    return DiskCheckpointer(checkpoints, parts, options.checkpoint.keep)


def _checkpoint(options: Options, checkpoints: Checkpoints) -> Checkpoint | None:
    """The checkpoint to continue from, verified."""
    resume = options.checkpoint.resume
    if resume is False or (resume is None and not options.checkpoint.enabled):
        return None
    if resume is None or isinstance(resume, bool) or resume == -1:
        return checkpoints.newest()
    return checkpoints.at(resume)


def _tracker(options: Options, checkpoint: Checkpoint | None, display: Display) -> Tracker:
    tracking = options.tracking
    if tracking.log_with is None or not PartialState().is_main_process:
        return NoTracker()
    from accmt.tracking.mlflow import MlflowTracker

    run_id = None if checkpoint is None else tracker_state(checkpoint.path).get("mlflow")
    parameters = {**options.hps.to_dict(), **tracking.config}
    tracker = MlflowTracker(tracking.logging_dir, tracking.track_name, parameters, run_id, **tracking.run)
    return GuardedTracker(tracker, display.warn)

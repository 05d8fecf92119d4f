"""From options, a module and datasets to a run: every check first, then the parts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from accmt.checkpoint.checkpoints import Checkpoint, Checkpoints, NoCheckpoint
from accmt.checkpoint.contents import Parts
from accmt.checkpoint.deepspeed import DeepSpeedState
from accmt.checkpoint.packing import pack
from accmt.checkpoint.savings import Savings
from accmt.checkpoint.together import from_main
from accmt.checkpoint.weights import WeightsFormat
from accmt.config.errors import must_be
from accmt.configuration import configuration
from accmt.display.display import ConsoleDisplay, Display, NoDisplay, QuietDisplay
from accmt.fit_check import facts_of, metrics_on
from accmt.hyperparameters import ConfigError, Problem
from accmt.loop.checkpointer import DiskCheckpointer, check_data, tracker_state
from accmt.loop.closure import ClosureStepper, closure_problem, needs_closure
from accmt.loop.compare import know_data
from accmt.loop.data import TrainingData, is_several, training_loader, validation_loaders
from accmt.loop.engines import PLAIN, is_deepspeed
from accmt.loop.evaluate import Evaluation
from accmt.loop.exactness import generators_of, inexact
from accmt.loop.hooks import Hooks
from accmt.loop.identity import order_of
from accmt.loop.placement import Placement
from accmt.loop.position import Position
from accmt.loop.processes import join_processes
from accmt.loop.pulse import Pulse
from accmt.loop.run import Checkpointer, NoCheckpointer, Run
from accmt.loop.schedule import Schedule
from accmt.loop.signals import Signals
from accmt.loop.step import ManualStepper, StepOptions, Stepper
from accmt.loop.utilization import begin_measuring
from accmt.module import AcceleratorModule, ExtendedAcceleratorModule
from accmt.options import Options
from accmt.preparation import Prepared, configure, prepare, prepare_teacher
from accmt.pretrained import check_extras, extras_of, notes_of
from accmt.rules import Facts, Length, RuleEngine, Rules, SavingRule, assign_patience, check
from accmt.states import TrainingState
from accmt.tracking.journal import DECISIONS, HISTORY, Journal
from accmt.tracking.start import start_trackers
from accmt.tracking.tracker import Beginning, NoTracker, Tracker


@dataclass(frozen=True, slots=True)
class Plan:
    """A training that has passed all checks that need no file, and has touched nothing."""

    options: Options
    model_path: Path
    module: AcceleratorModule
    accelerator: Accelerator
    data: TrainingData
    loaders: Mapping[str, DataLoader[Any]]
    position: Position
    rules: Rules
    facts: Facts
    optimizer: Any
    schedule: Schedule
    parts: Parts
    warnings: tuple[str, ...]


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
    accelerator = join_processes(options.model.mixed_precision)
    if options.checkpoint.in_background and is_deepspeed(accelerator):
        text = "DeepSpeed writes its part of a checkpoint while the training waits: leave it out"
        raise ConfigError([Problem("checkpoint_async", text)], "Trainer(...)")
    data = _training_data(options, module, train_dataset)
    position = Position(data, options.hps.epochs, options.hps.max_steps)
    length = Length(position.total_steps, data.steps_per_epoch, data.samples_per_step)
    facts = facts_of(options.metrics, tuple(datasets), length)
    rules = _rules(options, savings, facts)
    warnings = [*map(str, check(rules, facts)), *_without_effect(options, facts), *notes_of(module)]
    warnings += inexact(data.loader) if options.checkpoint.enabled else []
    optimizer, schedule = _optimizer(options, module, data, position, accelerator)
    if not options.saving.disabled:
        check_extras(module, options)
    if options.checkpoint.resume and not Checkpoints(model_path).all():
        folder = Checkpoints(model_path).folder
        raise NoCheckpoint(f"resume={options.checkpoint.resume}, but there is no checkpoint in {folder}")
    return Plan(
        options,
        model_path,
        module,
        accelerator,
        data,
        validation_loaders(options.data, module, datasets),
        position,
        rules,
        facts,
        optimizer,
        schedule,
        _parts(module, optimizer, schedule, accelerator),
        tuple(warnings),
    )


def assemble(plan: Plan, state: TrainingState, checkpoint: Checkpoint | None, signals: Signals) -> Run:
    """Put the parts of a run together; the tracker goes on with the run of the checkpoint, if there is one."""
    options, module, accelerator = plan.options, plan.module, plan.accelerator
    record = _record(plan)
    if checkpoint is not None:
        know_data(record, plan.data, accelerator.device)
    if checkpoint is not None and options.checkpoint.resume is None:
        check_data(record, plan.position, checkpoint.path)
    main = accelerator.is_main_process
    module.state, module.device, module.accelerator = state, accelerator.device, accelerator
    is_managed = not isinstance(module, ExtendedAcceleratorModule)
    configure(accelerator, options.data.batch_size, options.step.clip_grad, is_managed=is_managed)
    prepared = prepare(module, plan.optimizer, options.model)
    display = _display(options) if main else NoDisplay()
    module.tracker = _tracker(plan, checkpoint, display)
    module._log_every = options.loop.log_every if options.loop.log_every != -1 else plan.data.steps_per_epoch
    hooks = Hooks(options.callbacks, state)
    stepper = _stepper(module, prepared, plan.schedule, options.step, hooks)
    metrics = {key: metrics_on(options.metrics, key) for key in plan.loaders}
    # Where engines share out a model, processes wait for each other in every forward pass: none can be repeated alone.
    repeats = options.step.repeats and accelerator.distributed_type in PLAIN
    parts = _with_engine(plan.parts, prepared, options, accelerator)
    checkpointer = _checkpointer(options, Checkpoints(plan.model_path), parts)
    run = Run(
        options=options.loop,
        module=module,
        model=parts.model,
        parts=parts,
        accelerator=accelerator,
        data=plan.data,
        evaluation=Evaluation(module, prepared.evaluated, plan.loaders, metrics, hooks, stepper.place, repeats),
        stepper=stepper,
        position=plan.position,
        engine=RuleEngine(plan.rules, plan.facts),
        state=state,
        hooks=hooks,
        savings=_savings(plan),
        checkpointer=checkpointer,
        history=Journal(plan.model_path / HISTORY, writes=main),
        decision_log=Journal(plan.model_path / DECISIONS, writes=main),
        tracker=module.tracker,
        display=display,
        generators=generators_of(module, parts.model, plan.loaders),
        schedule=plan.schedule,
        record=record,
        insists=options.checkpoint.resume is not None,
        pulse=Pulse(plan.position.stopwatch.elapsed, signals, checkpointer),
    )
    state.patience_left = run.engine.patience_left()
    return run


def assemble_evaluation(
    options: Options, module: AcceleratorModule, datasets: Mapping[str, Dataset[Any]], state: TrainingState
) -> Evaluation:
    """What an evaluation outside of a training needs."""
    accelerator = join_processes(options.model.mixed_precision)
    module.state, module.tracker = state, NoTracker()
    module.device, module.accelerator = accelerator.device, accelerator
    module.model = accelerator.prepare_model(module.model, evaluation_mode=True)
    prepare_teacher(module, options.model)
    step = options.step
    place = Placement.of(accelerator, moves=step.place_batches, converts=step.prepare_batches)
    metrics = {key: metrics_on(options.metrics, key) for key in datasets}
    loaders = validation_loaders(options.data, module, datasets)
    return Evaluation(module, module.model, loaders, metrics, Hooks(options.callbacks, state), place, step.repeats)


def _record(plan: Plan) -> dict[str, Any]:
    """What a checkpoint keeps of the settings and the order of the data; the data are looked at later."""
    settings = configuration(plan.options, plan.module)
    return {"settings": settings, "data": None, "order": order_of(plan.data.samplers)}


def _display(options: Options) -> Display:
    return QuietDisplay() if options.quiet else ConsoleDisplay()


def _savings(plan: Plan) -> Savings | None:
    saving = plan.options.saving
    if saving.disabled:
        return None
    form = WeightsFormat(saving.safe_serialization, saving.max_shard_size)
    return Savings(plan.model_path, form, extras_of(plan.module, plan.parts.model, plan.options))


def _stepper(
    module: AcceleratorModule, prepared: Prepared, schedule: Schedule, options: StepOptions, hooks: Hooks
) -> Stepper:
    model, optimizer = prepared.model, prepared.optimizer
    if not isinstance(module, ExtendedAcceleratorModule):
        kind = ClosureStepper if needs_closure(optimizer.optimizer) else Stepper
        return kind(module, model, optimizer, schedule, options, hooks)
    module._updates = stepper = ManualStepper(module, model, optimizer, schedule, options, hooks)
    return stepper


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
    elif is_several(sampler) and not all(isinstance(item, Sampler) for item in sampler):
        problem = "a list of samplers must hold nothing else"
    elif sampler is not None and (isinstance(sampler, type) or not hasattr(sampler, "__iter__")):
        problem = must_be("a sampler, a list of samplers, or a list of indices", sampler)
    if problem is not None:
        raise ConfigError([Problem("sampler", problem)], "fit(...)")


def _rules(options: Options, savings: Sequence[SavingRule], facts: Facts) -> Rules:
    default = SavingRule.parse("best_valid_loss" if facts.datasets else "best_train_loss")
    registered = tuple(savings) or (default,)
    patience = options.saving.patience
    given = dict(patience) if isinstance(patience, Mapping) else patience
    evaluate = options.rules.evaluate if facts.datasets else None
    checkpoint = options.checkpoint.every
    savings = assign_patience(registered, given)
    return Rules(savings, options.rules.stop_when, evaluate, checkpoint, writes=not options.saving.disabled)


def _without_effect(options: Options, facts: Facts) -> list[str]:
    """What was asked for and needs validation data, where there are none."""
    if facts.datasets:
        return []
    asked = {"metrics": any(options.metrics.values()), "evaluate_every": options.rules.evaluate.text != "epoch"}
    names = [name for name, is_asked in asked.items() if is_asked]
    return [f"there are no validation data: {' and '.join(names)} have no effect"] if names else []


def _optimizer(
    options: Options, module: AcceleratorModule, data: TrainingData, position: Position, accelerator: Accelerator
) -> tuple[Any, Schedule]:
    optimizer = module.get_optimizer() or options.hps.build_optimizer(module.model.named_parameters())
    _check_optimizer(optimizer, options, module, accelerator)

    def length() -> list[int | None]:
        return [position.total_steps, data.steps_per_epoch, position.total_epochs or options.hps.epochs]

    def make() -> Any | None:
        epochs = position.total_epochs or options.hps.epochs
        return module.get_scheduler(optimizer, data.steps_per_epoch, epochs) or options.hps.build_scheduler(
            optimizer, steps_per_epoch=data.steps_per_epoch, total_steps=position.total_steps, epochs=epochs
        )

    names = {id(parameter): name for name, parameter in module.model.named_parameters()}
    is_own = type(module).get_scheduler is not AcceleratorModule.get_scheduler
    per_epoch = options.step.scheduler_per_epoch
    return optimizer, Schedule(optimizer, names, make, length, per_epoch=per_epoch, is_own=is_own)


def _check_optimizer(optimizer: Any, options: Options, module: AcceleratorModule, accelerator: Accelerator) -> None:
    kind = type(optimizer).__name__
    problem = closure_problem(optimizer, module, accelerator)
    if problem is not None:
        raise ConfigError([Problem("optimizer", problem)], "fit(...)")
    sparse = next((layer for layer in module.model.modules() if _has_sparse_gradients(layer)), None)
    if sparse is not None and options.step.clip_grad is not None:
        text = f"the gradients of {type(sparse).__name__} are sparse and have no norm to clip: give clip_grad=None"
        watched = ", and no grad_norm in monitor" if options.step.clip_grad == math.inf else ""
        raise ConfigError([Problem("clip_grad", f"{text}{watched}")], "fit(...)")
    own = {id(parameter) for parameter in module.model.parameters()}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not any(id(parameter) in own for parameter in held):
        text = f"{kind} holds no parameter of {type(module).__name__}.model: nothing would be trained"
        raise ConfigError([Problem("get_optimizer", text)], "fit(...)")


def _has_sparse_gradients(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.sparse and layer.weight.requires_grad


def _parts(module: AcceleratorModule, optimizer: Any, schedule: Schedule, accelerator: Accelerator) -> Parts:
    stateful = {"optimizer": optimizer, "scheduler": schedule, "scaler": accelerator.scaler}
    stateful = {name: part for name, part in stateful.items() if part is not None}
    for name, part in stateful.items():
        try:
            pack(part.state_dict())
        except TypeError as error:
            raise ConfigError([Problem(name, f"its state {error}")], "fit(...)") from None
    return Parts(module.model, stateful)


def _with_engine(parts: Parts, prepared: Prepared, options: Options, accelerator: Accelerator) -> Parts:
    """The parts of a checkpoint, where DeepSpeed keeps some of them by itself."""
    if not is_deepspeed(accelerator):
        return parts
    engine = DeepSpeedState(prepared.model, trusts=options.checkpoint.trusts)
    return Parts(parts.model, {name: part for name, part in parts.stateful.items() if name == "scheduler"}, engine)


def _checkpointer(options: Options, checkpoints: Checkpoints, parts: Parts) -> Checkpointer:
    if not options.checkpoint.enabled:
        return NoCheckpointer()
    return DiskCheckpointer(checkpoints, parts, options.checkpoint.keep, in_background=options.checkpoint.in_background)


def _tracker(plan: Plan, checkpoint: Checkpoint | None, display: Display) -> Tracker:
    """The trackers, on the main process; all processes know when one refuses."""
    options, tracking = plan.options, plan.options.tracking
    started: list[Tracker] = [NoTracker()]

    def start() -> None:
        former = {} if checkpoint is None else tracker_state(checkpoint.path)
        step = None if checkpoint is None else checkpoint.step
        parameters = {**options.hps.to_dict(), **tracking.config}
        goes_back = type(options.checkpoint.resume) is int and options.checkpoint.resume > 0
        beginning = Beginning(tracking.logging_dir, tracking.track_name, parameters, former, step, goes_back)
        started[0] = start_trackers(tracking.trackers, beginning, plan.model_path, display.warn)
        unmeasured = begin_measuring(options.loop.monitor, PartialState().device) if tracking.trackers else None
        if unmeasured is not None:
            display.warn(unmeasured)

    from_main(start)
    return started[0]

"""Build a run from options, a module and datasets: all checks come first, then the parts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.data import Dataset, IterableDataset, Sampler

from accmt.checkpoint.checkpoints import Checkpoint, Checkpoints, NoCheckpoint
from accmt.checkpoint.deepspeed import DeepSpeedState
from accmt.checkpoint.extra_state import ExtraState
from accmt.checkpoint.format import Parts
from accmt.checkpoint.model_store import ModelStore
from accmt.checkpoint.optimizer_state import NamedOptimizer, held_by
from accmt.checkpoint.weights import WeightsFormat
from accmt.config.errors import must_be
from accmt.data.device import Placement
from accmt.data.generators import generators_of, inexact
from accmt.data.identity import order_of
from accmt.data.loaders import TrainingData, is_several, training_loader, without_workers
from accmt.data.user_loaders import check_alike, whole
from accmt.data.validation import ValidationData, validation_loaders
from accmt.display.display import Display, display_of
from accmt.distributed.collective import from_main
from accmt.distributed.heartbeat import Pulse
from accmt.distributed.process_group import join_processes, require_precision
from accmt.distributed.signals import Signals
from accmt.distributed.strategy import PLAIN, is_deepspeed, is_sharded
from accmt.distributed.weight_names import unwrapped
from accmt.hyperparameters import ConfigError, Problem
from accmt.hyperparameters.schedulers import NEEDS_METRIC, follows_metric, required_in_step
from accmt.loop.changes import know_data
from accmt.loop.checkpointer import DiskCheckpointer, check_data, tracker_state
from accmt.loop.closure import ClosureStepper, closure_problem, needs_closure
from accmt.loop.evaluate import Evaluation
from accmt.loop.hooks import Hooks
from accmt.loop.last_step import LastStep, NoLastStep
from accmt.loop.learning_rate import Schedule
from accmt.loop.progress import Position
from accmt.loop.run import Checkpointer, NoCheckpointer, Run
from accmt.loop.step import ManualStepper, Stepper
from accmt.loop.trainable_parameters import Beside
from accmt.loop.training_metrics import TrainingMetrics
from accmt.loop.utilization import begin_measuring
from accmt.module import AcceleratorModule, ExtendedAcceleratorModule
from accmt.rules import Facts, FollowedScore, Length, RuleEngine, RuleError, Rules, SavingRule, assign_patience, check
from accmt.rules.checker import meetings
from accmt.setup.inputs import facts_of, metrics_on
from accmt.setup.model import Prepared, configure, place_beside, prepare, prepare_teacher
from accmt.setup.options import Options
from accmt.setup.parts_check import check_beside, check_parts
from accmt.setup.pretrained import check_extras, extras_of, notes_of
from accmt.setup.settings import configuration
from accmt.setup.unsaved_state import unsaved
from accmt.states import TrainingState
from accmt.tracking.journal import DECISIONS, HISTORY, Journal
from accmt.tracking.start import start_trackers
from accmt.tracking.tracker import Beginning, NoTracker, Tracker


@dataclass(frozen=True, slots=True)
class Plan:
    """A training that has passed all checks that need no file; nothing has been touched yet."""

    options: Options
    model_path: Path
    module: AcceleratorModule
    accelerator: Accelerator
    data: TrainingData
    loaders: Mapping[str, ValidationData]
    position: Position
    rules: Rules
    facts: Facts
    optimizer: Any
    schedule: Schedule
    parts: Parts
    display: Display
    beside: Beside
    warnings: tuple[str, ...]

    def close(self) -> None:
        """Stop the data-loading processes, even if the traceback of an error still references them."""
        self.data.close()
        for loader in self.loaders.values():
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
    if options.checkpoint.in_background and is_deepspeed(accelerator):
        text = "DeepSpeed writes its part of a checkpoint while the training waits: leave it out"
        raise ConfigError([Problem("checkpoint_async", text)], "Trainer(...)")
    if options.checkpoint.on_exception and (is_deepspeed(accelerator) or is_sharded(accelerator)):
        text = "what a failed step leaves of a model that processes divide is no whole model: leave it out"
        raise ConfigError([Problem("checkpoint_on_exception", text)], "Trainer(...)")
    data = _training_data(options, module, train_dataset)
    loaders = validation_loaders(options.data, module, datasets, lambda: data.seed)
    position = Position(data, options.hps.epochs, options.hps.max_steps)
    length = Length(position.total_steps, data.steps_per_epoch, data.samples_per_step)
    facts = facts_of(options.metrics, tuple(datasets), length, options.training_metrics)
    rules = _rules(options, savings, facts)
    warnings = [*map(str, check(rules, facts)), *_without_effect(options, facts), *notes_of(module)]
    warnings += inexact(data.loader) if options.checkpoint.enabled else []
    warnings += without_workers(options.data, [data.loader, *(each.loader for each in loaders.values())])
    optimizer, schedule, is_ours = _optimizer(options, module, data, position, accelerator)
    _check_scheduler(schedule.scheduler, options, facts)
    parts = _parts(options, module, optimizer, schedule, accelerator)
    check_beside(options, module, optimizer, parts, accelerator, is_ours=is_ours)
    check_parts(options, parts)
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
        loaders,
        position,
        rules,
        facts,
        optimizer,
        schedule,
        parts,
        display_of(is_main=accelerator.is_main_process, quiet=options.quiet),
        _beside(options, module, parts, optimizer, is_ours=is_ours),
        tuple(warnings),
    )


def assemble(plan: Plan, state: TrainingState, checkpoint: Checkpoint | None, signals: Signals) -> Run:
    """Assemble the run; the tracker resumes the run recorded in the checkpoint, if there is one."""
    options, module, accelerator = plan.options, plan.module, plan.accelerator
    module.tracker = NoTracker()  # set first: it is closed if anything below fails
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
    if options.checkpoint.enabled and plan.parts.kept is not None:
        for text in unsaved(module, options.callbacks, plan.parts.kept):
            plan.display.warn(text)
    module.tracker = _tracker(plan, checkpoint)
    module._log_every, module._logged = _log_every(plan), None
    module._training_metrics = training = TrainingMetrics(options.training_metrics, accelerator.device)
    hooks = Hooks(options.callbacks, state)
    stepper = _stepper(plan, prepared, hooks)
    metrics = {key: metrics_on(options.metrics, key) for key in plan.loaders}
    # With a sharded model, processes wait for each other in every forward pass: none can repeat a step alone.
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
        training_metrics=training,
        position=plan.position,
        engine=RuleEngine(plan.rules, plan.facts),
        state=state,
        hooks=hooks,
        savings=_savings(plan),
        checkpointer=checkpointer,
        history=Journal(plan.model_path / HISTORY, writes=main),
        decision_log=Journal(plan.model_path / DECISIONS, writes=main),
        tracker=module.tracker,
        display=plan.display,
        schedule=plan.schedule,
        record=record,
        insists=options.checkpoint.resume is not None,
        generators=generators_of(module, parts.model, {key: each.loader for key, each in plan.loaders.items()}),
        steps=LastStep() if options.checkpoint.on_exception else NoLastStep(),
        pulse=Pulse(plan.position.stopwatch.elapsed, signals, checkpointer),
    )
    if run.engine.watches:
        stepper.losses.watch()
    state.patience_left = run.engine.patience_left()
    return run


def assemble_evaluation(
    options: Options,
    module: AcceleratorModule,
    datasets: Mapping[str, Dataset[Any]],
    state: TrainingState,
    around: Evaluation | None = None,
) -> Evaluation:
    """Assemble an evaluation that a user asks for.

    Args:
        options: The options of its trainer.
        module: The module to evaluate.
        datasets: The datasets to evaluate it on.
        state: The state of the evaluation.
        around: The evaluation of the surrounding training, which is not disturbed; None outside of a training.

    Raises:
        ConfigError: If its precision would differ from that of the surrounding training.
    """
    if around is None:
        accelerator = join_processes(options.model.mixed_precision)
    else:
        accelerator = around.module.accelerator
        require_precision(options.model.mixed_precision, accelerator)
    module.state, module.tracker = state, NoTracker()
    module.device, module.accelerator = accelerator.device, accelerator
    place_beside(module, module.model)
    if around is not None and module.model in (around.model, around.module.model):
        module.model = around.model
    else:
        known = list(accelerator._models)
        module.model = accelerator.prepare_model(module.model, evaluation_mode=True)
        accelerator._models[:] = known  # the models of the training
        prepare_teacher(module, options.model)
    step = options.step
    place = Placement.of(accelerator, moves=step.place_batches, converts=step.prepare_batches)
    metrics = {key: metrics_on(options.metrics, key) for key in datasets}
    seed = _agreed_seed()
    loaders = validation_loaders(options.data, module, datasets, lambda: seed)
    return Evaluation(module, module.model, loaders, metrics, Hooks(options.callbacks, state), place, step.repeats)


def _record(plan: Plan) -> dict[str, Any]:
    """Return what a checkpoint records of the settings and the data order; the data themselves are added later."""
    settings = configuration(plan.options, plan.module)
    return {"settings": settings, "data": None, "order": order_of(plan.data.samplers)}


def _log_every(plan: Plan) -> int | str | None:
    """Return the steps between two logs of the module, or a text if only the loop knows when it logs."""
    if plan.rules.log is not None:
        return plan.rules.log.text
    every = plan.options.loop.log_every
    return every if every != -1 else plan.data.steps_per_epoch or "epoch"


def _savings(plan: Plan) -> ModelStore | None:
    saving = plan.options.saving
    if saving.disabled:
        return None
    form = WeightsFormat(saving.safe_serialization, saving.max_shard_size)
    return ModelStore(plan.model_path, form, extras_of(plan.module, unwrapped(plan.parts.model), plan.options))


def _stepper(plan: Plan, prepared: Prepared, hooks: Hooks) -> Stepper:
    module, optimizer, kind = plan.module, prepared.optimizer, Stepper
    if isinstance(module, ExtendedAcceleratorModule):
        kind = ManualStepper
    elif needs_closure(optimizer.optimizer):
        kind = ClosureStepper
    options = plan.options.step
    stepper = kind(module, prepared.model, optimizer, plan.schedule, options, hooks, plan.beside)
    if isinstance(module, ExtendedAcceleratorModule):
        module._updates = stepper
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
    loader = whole(loader, "train_dataset")
    check_alike(loader, "train_dataset")
    data = TrainingData(loader, options.accumulation, _agreed_seed())
    if data.batches_per_epoch == 0:
        text = "has no whole batch: with dataloader_drop_last the batch must not be larger than the dataset"
        raise ConfigError([Problem("train_dataset", text)], "fit(...)")
    return data


def _agreed_seed() -> int:
    """Return the main process's seed on all processes."""
    seed = [torch.initial_seed() % 2**31]
    if PartialState().num_processes > 1:
        broadcast_object_list(seed)
    return seed[0]


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
    if problems := list(meetings(savings, options.tracking.names)):
        raise RuleError(problems)
    writes = not options.saving.disabled
    return Rules(savings, options.rules.stop_when, evaluate, checkpoint, writes=writes, log=options.rules.log)


def _without_effect(options: Options, facts: Facts) -> list[str]:
    """Warn about arguments that need validation data when there are none."""
    if facts.datasets:
        return []
    asked = {"metrics": any(options.metrics.values()), "evaluate_every": options.rules.evaluate.text != "epoch"}
    names = [name for name, is_asked in asked.items() if is_asked]
    return [f"there are no validation data: {' and '.join(names)} have no effect"] if names else []


def _optimizer(
    options: Options, module: AcceleratorModule, data: TrainingData, position: Position, accelerator: Accelerator
) -> tuple[Any, Schedule, bool]:
    """Return the optimizer, its schedule, and whether the optimizer comes from the hyperparameters."""
    given = module.get_optimizer()
    optimizer = given
    if optimizer is None:
        optimizer = options.hps.build_optimizer(module.model.named_parameters())
    _require_kind("get_optimizer", optimizer, "a torch.optim.Optimizer, or None", ("param_groups", "step", "zero_grad"))
    _check_optimizer(optimizer, options, module, accelerator)

    def length() -> list[int | None]:
        return [position.total_steps, data.steps_per_epoch, position.total_epochs or options.hps.epochs]

    def make() -> Any | None:
        epochs = position.total_epochs or options.hps.epochs
        scheduler = module.get_scheduler(optimizer, data.steps_per_epoch, epochs)
        if scheduler is not None:
            _require_kind("get_scheduler", scheduler, "one scheduler, or None", ("step", "state_dict"))
            return scheduler
        return options.hps.build_scheduler(
            optimizer, steps_per_epoch=data.steps_per_epoch, total_steps=position.total_steps, epochs=epochs
        )

    names = {id(parameter): name for name, parameter in module.model.named_parameters()}
    is_own = type(module).get_scheduler is not AcceleratorModule.get_scheduler
    per_epoch = options.step.scheduler_per_epoch
    schedule = Schedule(optimizer, names, make, length, per_epoch=per_epoch, is_own=is_own)
    return optimizer, schedule, given is None


def _require_kind(method: str, given: Any, wanted: str, names: Sequence[str]) -> None:
    """Check that the return value of a module's method can be used.

    Raises:
        ConfigError: If it cannot.
    """
    if isinstance(given, type) or not all(hasattr(given, name) for name in names):
        raise ConfigError([Problem(method, f"what it returns {must_be(wanted, given)}")], "fit(...)")


def _check_scheduler(scheduler: Any | None, options: Options, facts: Facts) -> None:
    """Check the metric that the scheduler follows.

    Raises:
        ConfigError, RuleError: With all problems.
    """
    followed, name = options.loop.followed, type(scheduler).__name__
    follows = scheduler is not None and follows_metric(scheduler)
    problems: list[Problem] = []
    if follows and followed is None:
        problems.append(Problem("scheduler_metric", NEEDS_METRIC.format(name)))
    elif not follows and followed is not None:
        text = "there is no scheduler" if scheduler is None else f"{name} does not follow a metric"
        problems.append(Problem("scheduler_metric", f"is given, and {text}: leave it out"))
    elif not follows and scheduler is not None and (required := required_in_step(scheduler)):
        text = f"{name}.step needs {', '.join(required)}, and is called without: take another scheduler"
        problems.append(Problem("scheduler", text))
    elif followed is not None:
        followed.check(facts)
        problems += _followed_problems(followed, scheduler, options, facts)
    if problems:
        raise ConfigError(problems, "Trainer(...)")


def _followed_problems(followed: FollowedScore, scheduler: Any, options: Options, facts: Facts) -> Iterator[Problem]:
    greater, name = followed.greater_is_better(facts), type(scheduler).__name__
    mode, wanted = getattr(scheduler, "mode", None), "max" if greater else "min"
    if mode in ("min", "max") and mode != wanted:
        text = f"{'higher' if greater else 'lower'} is better for {followed}, and the mode of {name} is '{mode}'"
        yield Problem("scheduler_metric", f"{text}: give it mode='{wanted}'")
    evaluates = str(options.rules.evaluate.cadence)
    if facts.datasets and options.step.scheduler_per_epoch and evaluates != "1 epoch":
        text = f"{name} steps after each evaluation, which comes every {evaluates}: leave it out"
        yield Problem("step_scheduler_per_epoch", text)


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
    if not any(id(parameter) in own for parameter in held_by(optimizer)):
        text = f"{kind} holds no parameter of {type(module).__name__}.model: nothing would be trained"
        raise ConfigError([Problem("get_optimizer", text)], "fit(...)")


def _has_sparse_gradients(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.sparse and layer.weight.requires_grad


def _parts(
    options: Options, module: AcceleratorModule, optimizer: Any, schedule: Schedule, accelerator: Accelerator
) -> Parts:
    kept = ExtraState(
        module, module.model, options.callbacks, [optimizer, schedule.scheduler, accelerator, accelerator.scaler]
    )
    named = NamedOptimizer(optimizer, kept.parameters)
    stateful = {"optimizer": named, "scheduler": schedule, "scaler": accelerator.scaler}
    return Parts(module.model, {name: part for name, part in stateful.items() if part is not None}, kept=kept)


def _beside(options: Options, module: AcceleratorModule, parts: Parts, optimizer: Any, *, is_ours: bool) -> Beside:
    """Return what is trained besides the parameters that the optimizer holds at the start."""
    model, hps = module.model, options.hps

    def extend(added: Sequence[nn.Parameter]) -> None:
        hps.extend_optimizer(optimizer, model.named_parameters(), added)

    assert parts.kept is not None
    return Beside(parts.kept.parameters, parts.kept.left_to_trainer, extend if is_ours else None)


def _with_engine(parts: Parts, prepared: Prepared, options: Options, accelerator: Accelerator) -> Parts:
    """Return the parts of a checkpoint, without those that DeepSpeed saves itself."""
    if not is_deepspeed(accelerator):
        return parts
    engine = DeepSpeedState(prepared.model, trusts=options.checkpoint.trusts)
    stateful = {name: part for name, part in parts.stateful.items() if name == "scheduler"}
    return Parts(parts.model, stateful, engine, parts.kept)


def _checkpointer(options: Options, checkpoints: Checkpoints, parts: Parts) -> Checkpointer:
    if not options.checkpoint.enabled:
        return NoCheckpointer()
    return DiskCheckpointer(checkpoints, parts, options.checkpoint.keep, in_background=options.checkpoint.in_background)


def _tracker(plan: Plan, checkpoint: Checkpoint | None) -> Tracker:
    """Create the trackers on the main process; if one fails, all processes learn of it."""
    options, tracking = plan.options, plan.options.tracking
    started: list[Tracker] = [NoTracker()]

    def start() -> None:
        former = {} if checkpoint is None else tracker_state(checkpoint.path)
        step = None if checkpoint is None else checkpoint.step
        parameters = {**options.hps.to_dict(), **tracking.config}
        goes_back = type(options.checkpoint.resume) is int and options.checkpoint.resume > 0
        names = tracking.logging_dir, tracking.track_name
        beginning = Beginning(*names, parameters, former, step, goes_back, tracking.folder)
        started[0] = start_trackers(tracking.trackers, beginning, plan.model_path, plan.display.warn)
        unmeasured = begin_measuring(options.loop.monitor, PartialState().device) if tracking.trackers else None
        if unmeasured is not None:
            plan.display.warn(unmeasured)

    from_main(start)
    return started[0]

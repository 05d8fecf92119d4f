"""Build the run of a training from its plan, or an evaluation that a user asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator
from torch.utils.data import Dataset

from accmt._compat import unlisted_models
from accmt.checkpoint.checkpointer import Checkpointer, CheckpointReader
from accmt.checkpoint.checkpoints import Checkpoints
from accmt.checkpoint.deepspeed import DeepSpeedState
from accmt.checkpoint.format import AVERAGE, ModelParts
from accmt.checkpoint.model_store import ModelStore
from accmt.checkpoint.stateful import StatefulParts
from accmt.checkpoint.weights import WeightsFormat
from accmt.data.device import DeviceTransfer
from accmt.data.generators import generators_of
from accmt.data.validation import validation_loaders
from accmt.distributed.heartbeat import Heartbeat
from accmt.distributed.process_group import join_processes, require_precision
from accmt.distributed.signals import Signals
from accmt.distributed.strategy import PLAIN, is_deepspeed
from accmt.distributed.weight_names import unwrapped
from accmt.loop.closure import ClosureStepper, needs_closure
from accmt.loop.evaluate import Evaluation
from accmt.loop.hooks import Hooks
from accmt.loop.last_step import LastStep
from accmt.loop.manual import ManualStepper
from accmt.loop.means import LossMeter, TrainingMetrics
from accmt.loop.profiling import StepProfiler
from accmt.loop.records import Records
from accmt.loop.run import Run
from accmt.loop.stateful_parts import (
    EngineState,
    Part,
    PublicState,
    RandomStates,
    Reading,
    objects_part,
    tracker_part,
)
from accmt.loop.step import Stepper
from accmt.loop.timetable import Timetable
from accmt.metrics.replicates import Replicated
from accmt.module import AcceleratorModule, ExtendedAcceleratorModule
from accmt.notices import warn
from accmt.resampling import Draws
from accmt.rules import RuleEngine, replicated
from accmt.setup.fused import leave_scaling, use_fused
from accmt.setup.inputs import metrics_on
from accmt.setup.model import Prepared, configure, place_beside, prepare, prepare_teacher
from accmt.setup.options import Options
from accmt.setup.plain_module import with_default_metrics
from accmt.setup.plan import Plan, agreed_seed
from accmt.setup.pretrained import extras_of, notes_of
from accmt.setup.unsaved_state import unsaved
from accmt.states import TrainingState
from accmt.tracking.tracker import NoTracker


def assemble(plan: Plan, state: TrainingState, signals: Signals) -> Run:
    """Assemble the run. Its module has no tracker yet."""
    options, module, accelerator, position = plan.options, plan.module, plan.accelerator, plan.position
    module.tracker = NoTracker()
    module.state, module.device, module.accelerator = state, accelerator.device, accelerator
    is_managed = not isinstance(module, ExtendedAcceleratorModule)
    configure(accelerator, options.data.batch_size, options.step.norm_limit, is_managed=is_managed)
    prepared = prepare(module, plan.optimizer, options.model, through_wrapper=options.step.through_wrapper)
    for text in unsaved(module, options.callbacks, plan.parts.kept) if options.checkpoint.enabled else ():
        warn(text)
    log = options.loop.log
    logs = log is not None or options.rules.log is not None
    module._log_every = None if log is None else log.length(plan.data.steps_per_epoch)
    module._logged = {} if logs and module._log_every is None else None
    hooks, engine = Hooks(options.callbacks, state), RuleEngine(plan.rules, plan.facts)
    state.patience_left = engine.patience_left()
    stepper = stepper_of(plan, prepared, hooks, looks=engine.watches)
    metrics = {key: metrics_on(options.metrics, key) for key in plan.validation}
    # With a sharded model, processes wait for each other in every forward pass: none can repeat a step alone.
    repeats = options.step.repeats and accelerator.distributed_type in PLAIN
    parts = _with_engine(plan.parts, prepared, options, accelerator)
    generators = generators_of(module, parts.model, {key: each.loader for key, each in plan.loaders.items()})
    prepared_for = module, prepared.evaluated, plan.loaders, metrics, hooks, stepper.place, repeats
    evaluation = Evaluation(*prepared_for, _replicated(plan), plan.held_out)
    reading = Reading(plan.data, generators, position, warn)
    records = Records(plan.model_path, writes=accelerator.is_main_process, reports=options.report)
    random = RandomStates(accelerator.device, position)
    stateful = _stateful(plan, state, engine, stepper, reading, records, random)
    kind, checkpoint = Checkpointer if options.checkpoint.enabled else CheckpointReader, options.checkpoint
    checkpointer = kind(
        Checkpoints(plan.model_path), parts, stateful, checkpoint.keep, in_background=checkpoint.in_background
    )
    if options.profile is not None:
        where = plan.model_path, accelerator.process_index, plan.display
        stepper.profiler = StepProfiler(options.profile, *where)
    stepper.average = parts.stateful.get(AVERAGE)
    heartbeat = Heartbeat(position.stopwatch.elapsed, signals, checkpointer)
    return Run(
        options=options.loop,
        module=module,
        data=plan.data,
        evaluation=evaluation,
        stepper=stepper,
        position=position,
        engine=engine,
        savings=_savings(plan),
        checkpointer=checkpointer,
        records=records,
        display=plan.display,
        heartbeat=heartbeat,
        timetable=Timetable(position, engine, heartbeat, (options.loop.log, options.loop.clean)),
        random=random,
        last_step=LastStep(reading, is_on=checkpoint.on_exception),
    )


def _stateful(
    plan: Plan,
    state: TrainingState,
    engine: RuleEngine,
    stepper: Stepper,
    reading: Reading,
    records: Records,
    random: RandomStates,
) -> StatefulParts:
    """Return what a checkpoint holds besides the model and its optimizer, by the names in its files."""
    return StatefulParts(
        shared={
            "position": plan.position,
            "engine": EngineState(engine),
            "state": PublicState(state, engine),
            "records": records,
            "tracker": tracker_part(plan.module),
            "configuration": plan.settings,
        },
        ranked={
            "losses": stepper.losses,
            "training": stepper.metrics,
            "random": random,
            "gradients": Part(stepper.gradients, stepper.check_gradients, stepper.take_up),
            "data": reading,
            "objects": objects_part(plan.parts.kept),
        },
    )


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
    for note in notes_of(module):
        warn(note)
    module.state, module.tracker = state, NoTracker()
    module.device, module.accelerator = accelerator.device, accelerator
    place_beside(module, module.model)
    if around is not None and module.model in (around.model, around.module.model):
        module.model = around.model
    else:
        with unlisted_models(accelerator):  # it knows those of the training
            module.model = accelerator.prepare_model(module.model, evaluation_mode=True)
        prepare_teacher(module, options.model)
    step = options.step
    place = DeviceTransfer.of(accelerator, moves=step.place_batches, converts=step.prepare_batches)
    seed = agreed_seed()
    loaders = validation_loaders(options.data, module, datasets, lambda: seed)
    options = with_default_metrics(options, module, loaders)
    metrics = {key: metrics_on(options.metrics, key) for key in datasets}
    return Evaluation(module, module.model, loaders, metrics, Hooks(options.callbacks, state), place, step.repeats)


def _replicated(plan: Plan) -> Replicated | None:
    wanted = replicated(plan.rules, plan.facts)
    return Replicated(Draws(plan.options.rules.replicates), wanted) if wanted else None


def _savings(plan: Plan) -> ModelStore | None:
    saving = plan.options.saving
    if saving.disabled:
        return None
    form = WeightsFormat(saving.safe_serialization, saving.max_shard_size)
    return ModelStore(plan.model_path, form, extras_of(plan.module, unwrapped(plan.parts.model), plan.options))


def stepper_of(plan: Plan, prepared: Prepared, hooks: Hooks, *, looks: bool) -> Stepper:
    """Return the maker of optimizer steps for a prepared model."""
    module, optimizer, kind = plan.module, prepared.optimizer, Stepper
    if plan.accelerator.scaler is not None:
        leave_scaling(plan.optimizer)
    if plan.beside.extend is not None:  # built from the hyperparameters
        use_fused(plan.optimizer, plan.options.hps, plan.accelerator)
    if isinstance(module, ExtendedAcceleratorModule):
        kind = ManualStepper
    elif needs_closure(optimizer.optimizer):
        kind = ClosureStepper
    device, options = plan.accelerator.device, plan.options
    module._training_metrics = metrics = TrainingMetrics(options.training_metrics, device)
    means = LossMeter(device, looks=looks), metrics
    stepper = kind(module, prepared.model, optimizer, plan.schedule, options.step, hooks, plan.beside, means)
    if isinstance(module, ExtendedAcceleratorModule):
        module._stepper = stepper
    return stepper


def _with_engine(parts: ModelParts, prepared: Prepared, options: Options, accelerator: Accelerator) -> ModelParts:
    """Return the parts of a checkpoint, without those that DeepSpeed saves itself."""
    if not is_deepspeed(accelerator):
        return parts
    engine = DeepSpeedState(prepared.model, trusts=options.checkpoint.trusts)
    stateful = {name: part for name, part in parts.stateful.items() if name == "scheduler"}
    return ModelParts(parts.model, stateful, parts.kept, engine)

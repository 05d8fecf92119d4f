"""Texts printed before and after a training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from accmt.checkpoint.saved_models import best_in
from accmt.display.display import RuleResult
from accmt.display.lines import for_shell
from accmt.hyperparameters.schedulers import SCHEDULERS
from accmt.loop.progress import epoch_shown
from accmt.loop.run import Run
from accmt.model_summary import ModelPart, summarize
from accmt.module import AcceleratorModule
from accmt.rules import Facts, Progress, SavingRule, Stop
from accmt.rules.describe import cadence_in_words, in_words
from accmt.rules.errors import numbered
from accmt.rules.store import ONLY_DATASET, VALID_LOSS, dataset_name
from accmt.seed_run import seed_of_run
from accmt.setup.plan import Plan

_MOST_PARTS = 8


def before_training(plan: Plan) -> tuple[dict[str, str], dict[str, str]]:
    """Describe the model, the device, the length, how it is trained, and each rule in words."""
    facts = {name: text for name, text in _facts(plan) if text}
    return facts, {rule.name: in_words(rule, plan.facts) for rule in plan.rules.savings}


def after_training(run: Run, stop: Stop | None, model_path: Path) -> tuple[list[RuleResult], Path, str]:
    """Summarize what each rule saved and where, and why the training ended."""
    results = [_result(run, rule, model_path) for rule in run.engine.rules.savings]
    why = "the training is complete" if stop is None else f"stopped: {stop.reason}"
    return results, model_path, f"{why}, after {numbered(run.position.step, 'step')}"


def _result(run: Run, rule: SavingRule, model_path: Path) -> RuleResult:
    """Return the best model that a rule has saved, and the values of its objectives at each evaluation."""
    names = [str(objective) for objective in rule.saving.ranking.objectives]
    seen = [v.values for each in run.records.decisions for v in each.verdicts if v.rule == rule.name]
    courses = {name: [each[n] for each in seen if len(each) == len(names)] for n, name in enumerate(names)}
    has_saved = run.savings is not None and rule.name in run.state.model_savings
    saving = best_in(model_path / rule.folder) if has_saved else None
    if saving is None:
        return RuleResult(rule.name, courses, {}, "", None)
    if saving.average_of:
        when = f"the average of its {len(saving.average_of)} models"
    else:
        moments = {each.progress.step: each.progress for each in run.records.decisions}
        progress = moments.get(saving.step, Progress(step=saving.step, epoch=saving.epoch))
        when = f"step {saving.step}, epoch {epoch_shown(progress, run.data.steps_per_epoch, None)}"
    return RuleResult(rule.name, courses, saving.values, when, saving.folder, saving.measured)


def nothing_done(plan: Plan, stop: Stop | None) -> str:
    """Explain why a resumed training made no step, and how to train further."""
    position, hps = plan.position, plan.options.hps
    if stop is not None:
        return (
            f"nothing was trained: the training is stopped at step {position.step}: {stop.reason}. To continue, "
            "change the patience or the condition that stops it, or give resume=False to start from scratch"
        )
    name, wanted, done, wants = "epochs", hps.epochs, position.epoch, "epochs"
    if hps.max_steps is not None:
        name, wanted, done, wants = "max_steps", hps.max_steps, position.step, "steps (max_steps)"
    more = f" {name} is {wanted}, and {done} are done:" if done > wanted else ""
    return (
        f"nothing was trained:{more} the training is already finished, after {_epochs(position.epoch)} and "
        f"{numbered(position.step, 'step')}. Give more {wants} to continue, or resume=False to start from scratch"
    )


def _facts(plan: Plan) -> Iterator[tuple[str, str]]:
    """Yield what is trained, and how it is trained, evaluated and saved; "" for what is not set."""
    options, position, keys = plan.options, plan.position, plan.facts.datasets
    model, precision = summarize(plan.module, 0).parts[0], plan.accelerator.mixed_precision
    yield "model", f"{model.kind}, {model.parameters:,} parameters, {model.trainable:,} of them trained"
    yield "parts", _parts(plan)
    processes = plan.accelerator.num_processes
    yield "device", f"{plan.accelerator.device}, {processes} process{'es' * (processes > 1)}"
    yield "batch", _batch(plan)
    steps = "unknown steps" if position.total_steps is None else numbered(position.total_steps, "step", ",")
    yield "length", f"{steps}, {_epochs(position.total_epochs)}"
    yield "limited", "; ".join(_limits(plan))
    yield "metrics", _directions(plan.facts)
    yield "optimizer", _optimizer(plan)
    yield "scheduler", "" if plan.schedule.scheduler is None else _scheduler(plan)
    types = dict.fromkeys(str(each.dtype).removeprefix("torch.") for each in plan.parts.model.parameters())
    yield "precision", ", ".join(types) if precision == "no" else f"{precision}, mixed"
    if options.step.clip_grad is not None:
        yield "clipping", f"gradients to a norm of {options.step.clip_grad:g}"
    if options.step.clip_value is not None:
        yield "clipping", f"each element of the gradients to {options.step.clip_value:g}"
    yield "seed", f"{plan.data.seed}{' (of accmt seeds)' * (seed_of_run() == plan.data.seed)}"
    yield "stop when", "; ".join(stop.text for stop in plan.rules.stop_when)
    if plan.rules.evaluate is not None:
        only = " (in rules: 0)" if keys == (ONLY_DATASET,) else ""
        named = ", ".join(dataset_name(key, keys) for key in keys)
        yield "evaluates", f"{cadence_in_words(plan.rules.evaluate.cadence)}, on {named}{only}"
    yield "held out", _held_out(plan)
    checkpoint = plan.rules.checkpoint
    yield "checkpoints", "never" if checkpoint is None else cadence_in_words(checkpoint.cadence)
    yield "writes to", for_shell(plan.model_path)
    name, sends = options.loop.val_loss_name, keys and options.loop.monitor.validation_loss
    called = [f"where {VALID_LOSS} is called {name}"] if sends and name != VALID_LOSS else []
    yield "sends to", ", ".join([*options.tracking.trackers, *called] if options.tracking.trackers else ())


def _held_out(plan: Plan) -> str:
    """Name the held-out datasets, and say when they are evaluated; nothing if there are none."""
    if not plan.held_out:
        return ""
    when = "no model is saved that could be evaluated"
    if plan.rules.writes:
        when = "each saved model is evaluated once, after the training"
    return f"{', '.join(plan.held_out)} ({when})"


def _batch(plan: Plan) -> str:
    """Say how many samples make a step, and of which factors the number is the product."""
    size, processes, accumulation = plan.options.data.batch_size, plan.accelerator.num_processes, plan.data.accumulation
    together = accumulation.at(plan.position.epoch)
    factors = [f"{processes} processes"] * (processes > 1)
    if len(accumulation.starts) > 1:
        factors.append(f"batches a step: {accumulation}")
    elif together > 1:
        factors.append(f"{together} batches accumulated a step")
    product = f"{size * processes * together} samples"
    return f"{product} ({', '.join([f'{size} a process', *factors])})" if factors else product


def _optimizer(plan: Plan) -> str:
    """Name the optimizer, how it steps, and its learning rate at the start; the lowest and the highest of several."""
    rates = [group.get("initial_lr", group.get("lr")) for group in plan.optimizer.param_groups]
    shown = [f"{rate:g}" for rate in sorted({float(rate) for rate in rates if rate is not None})]
    rate = f", learning rate {' to '.join(dict.fromkeys([shown[0], shown[-1]]))}" if shown else ""
    fused = ", fused" * any(group.get("fused") for group in plan.optimizer.param_groups)
    return f"{type(plan.optimizer).__name__}{fused}{rate}"


def _scheduler(plan: Plan) -> str:
    """Name the scheduler, and say when it steps."""
    chosen, followed = plan.options.hps.scheduler, plan.options.loop.followed
    is_chosen = chosen is not None and type(plan.module).get_scheduler is AcceleratorModule.get_scheduler
    unit = "epoch" if plan.options.step.scheduler_per_epoch else "step"
    when = f"every {unit}" if followed is None else f"follows {followed}"
    return f"{SCHEDULERS.title_of(chosen) if is_chosen else plan.schedule.kind}, {when}"


def _parts(plan: Plan) -> str:
    """List the parts that have parameters, with their numbers; nothing for a single one."""
    parts = [part for part in summarize(plan.module).parts if part.parameters]
    listed = [f"{_part_name(part)}: {part.parameters:,}" for part in parts[:_MOST_PARTS]]
    more = [f"{len(parts) - _MOST_PARTS} more"] if len(parts) > _MOST_PARTS else []
    return "; ".join([*listed, *more]) if len(parts) > 1 else ""


def _part_name(part: ModelPart) -> str:
    """Name a part; one that is only numbered also by its class."""
    name = part.name.removeprefix("model.")
    return f"{name} ({part.kind})" if name.isdigit() else name


def _limits(plan: Plan) -> Iterator[str]:
    """Yield what is left out of the data."""
    data, keys = plan.data, plan.facts.datasets
    if data.is_limited:
        of = "" if data.whole_length is None else f" of {data.whole_length:,}"
        each = " on each process" if plan.accelerator.num_processes > 1 else ""
        yield f"each epoch trains on {data.batches_per_epoch:,}{of} batches{each}"
    names: dict[int | None, list[str]] = {}
    for key, loader in plan.validation.items():
        if loader.is_limited:
            names.setdefault(loader.limit, []).append(f"'{dataset_name(key, keys)}'")
    for limit, limited in names.items():
        yield f"evaluations on {', '.join(limited)} use the first {limit:,} batches"


def _directions(facts: Facts) -> str:
    """List the metrics by direction; a metric not reported on all datasets is followed by the names of its datasets."""
    words: dict[bool | None, list[str]] = {}
    for name, metric in facts.metrics.items():
        on = ", ".join(metric.datasets or facts.held_out)
        on = "" if metric.datasets == facts.datasets else f" ({on})"
        words.setdefault(metric.greater_is_better, []).append(name + on)
    for name, greater_is_better in facts.training.items():
        words.setdefault(greater_is_better, []).append(f"{name} (training)")
    said = {True: "higher is better for", False: "lower is better for", None: "no direction for"}
    return "; ".join(f"{text} {', '.join(words[greater])}" for greater, text in said.items() if greater in words)


def _epochs(count: int | None) -> str:
    return "an unknown number of epochs" if count is None else numbered(count, "epoch")

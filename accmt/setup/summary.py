"""Texts printed before and after a training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from accmt.checkpoint.saved_models import best_in
from accmt.display.display import RuleResult
from accmt.display.lines import for_shell
from accmt.distributed.strategy import count_of
from accmt.hyperparameters.schedulers import SCHEDULERS
from accmt.loop.progress import epoch_shown
from accmt.loop.run import Run
from accmt.model_summary import ModelPart, summarize
from accmt.module import AcceleratorModule
from accmt.rules import Facts, Progress, SavingRule, Stop
from accmt.rules.describe import cadence_in_words, in_words
from accmt.rules.store import ONLY_DATASET, VALID_LOSS, dataset_name
from accmt.setup.plan import Plan

_MOST_PARTS = 8


def before_training(plan: Plan, notes: list[str]) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Describe the model, the device, the length, how it is trained, and each rule in words."""
    return _facts(plan), {rule.name: in_words(rule, plan.facts) for rule in plan.rules.savings}, notes


def after_training(run: Run, stop: Stop | None, model_path: Path) -> tuple[list[RuleResult], Path, str]:
    """Summarize what each rule saved and where, and why the training ended."""
    results = [_result(run, rule, model_path) for rule in run.engine.rules.savings]
    why = "the training is complete" if stop is None else f"stopped: {stop.reason}"
    return results, model_path, f"{why}, after {_steps(run.position.step)}"


def _result(run: Run, rule: SavingRule, model_path: Path) -> RuleResult:
    """Return the best model that a rule has saved, and the values of its objectives at each evaluation."""
    names = [str(objective) for objective in rule.saving.ranking.objectives]
    seen = [v.values for each in run.records.decisions for v in each.verdicts if v.rule == rule.name]
    courses = {name: [each[n] for each in seen if len(each) == len(names)] for n, name in enumerate(names)}
    has_saved = run.savings is not None and rule.name in run.state.model_savings
    saving = best_in(model_path / rule.folder) if has_saved else None
    if saving is None:
        return RuleResult(rule.name, courses, {}, "", None)
    moments = {each.progress.step: each.progress for each in run.records.decisions}
    progress = moments.get(saving.step, Progress(step=saving.step, epoch=saving.epoch))
    when = f"step {saving.step}, epoch {epoch_shown(progress, run.data.steps_per_epoch, None)}"
    return RuleResult(rule.name, courses, saving.values, when, saving.folder)


def nothing_done(plan: Plan, stop: Stop | None) -> str:
    """Explain why a resumed training made no step, and how to train further."""
    position, hps = plan.position, plan.options.hps
    if stop is not None:
        return (
            f"nothing was trained: the training is stopped at step {position.step}: {stop.reason}. "
            f"To continue, change what stops it, or give resume=False to start from scratch"
        )
    given, done = ("max_steps", hps.max_steps), position.step
    if hps.max_steps is None:
        given, done = ("epochs", hps.epochs), position.epoch
    name, wanted = given
    more = f" {name} is {wanted}, and {done} are done:" if done > (wanted or 0) else ""
    wanted_more = "steps (max_steps)" if name == "max_steps" else name
    return (
        f"nothing was trained:{more} the training is already finished, after {_epochs(position.epoch)} and "
        f"{_steps(position.step)}. Give more {wanted_more} to continue, "
        f"or resume=False to start from scratch"
    )


def _facts(plan: Plan) -> dict[str, str]:
    model, position, data = plan.parts.model, plan.position, plan.data
    total, trained = count_of(model)
    processes = plan.accelerator.num_processes
    together = data.accumulation.at(position.epoch)
    batch = plan.options.data.batch_size * processes * together
    several = data.accumulation.sizes != {1}
    factors = [f"{plan.options.data.batch_size} a process"] if processes > 1 or several else []
    factors += [f"{processes} processes"] * (processes > 1)
    is_table = len(data.accumulation.starts) > 1
    factors += [f"batches a step: {data.accumulation}" if is_table else f"{together} batches a step"] * several
    steps = "unknown" if position.total_steps is None else f"{position.total_steps:,}"
    facts = {
        "model": f"{type(model).__name__}, {total:,} parameters, {trained:,} of them trained",
        "parts": _parts(plan),
        "device": f"{plan.accelerator.device}, {processes} process{'es' * (processes > 1)}",
        "batch": f"{batch} samples" + (f" ({', '.join(factors)})" if factors else ""),
        "length": f"{steps} step{'s' * (position.total_steps != 1)}, {_epochs(position.total_epochs)}",
    }
    if limits := list(_limits(plan)):
        facts["limited"] = "; ".join(limits)
    if plan.facts.metrics or plan.facts.training:
        facts["metrics"] = _directions(plan.facts)
    facts = {**facts, "optimizer": _optimizer(plan), **dict(_settings(plan))}
    return {name: text for name, text in facts.items() if text}


def _settings(plan: Plan) -> Iterator[tuple[str, str]]:
    """Yield how the model is trained, evaluated and saved, as far as it is set."""
    options, precision, keys = plan.options, plan.accelerator.mixed_precision, plan.facts.datasets
    if plan.schedule.scheduler is not None:
        yield "scheduler", _scheduler(plan)
    types = dict.fromkeys(str(each.dtype).removeprefix("torch.") for each in plan.parts.model.parameters())
    yield "precision", ", ".join(types) if precision == "no" else f"{precision}, mixed"
    if options.step.clip_grad is not None:
        yield "clipping", f"gradients to a norm of {options.step.clip_grad:g}"
    if options.step.clip_value is not None:
        yield "clipping", f"each element of the gradients to {options.step.clip_value:g}"
    yield "seed", str(plan.data.seed)
    if plan.rules.stop_when:
        yield "stop when", "; ".join(stop.text for stop in plan.rules.stop_when)
    if plan.rules.evaluate is not None:
        only = " (in rules: 0)" if keys == (ONLY_DATASET,) else ""
        named = ", ".join(dataset_name(key, keys) for key in keys)
        yield "evaluates", f"{cadence_in_words(plan.rules.evaluate.cadence)}, on {named}{only}"
    checkpoint = plan.rules.checkpoint
    yield "checkpoints", "never" if checkpoint is None else cadence_in_words(checkpoint.cadence)
    yield "writes to", for_shell(plan.model_path)
    if options.tracking.trackers:
        name, sends = options.loop.val_loss_name, keys and options.loop.monitor.validation_loss
        called = [f"where {VALID_LOSS} is called {name}"] if sends and name != VALID_LOSS else []
        yield "sends to", ", ".join([*options.tracking.trackers, *called])


def _optimizer(plan: Plan) -> str:
    """Name the optimizer and its learning rate at the start; the lowest and the highest of several."""
    rates = [group.get("initial_lr", group.get("lr")) for group in plan.optimizer.param_groups]
    shown = [f"{rate:g}" for rate in sorted({float(rate) for rate in rates if rate is not None})]
    rate = f", learning rate {' to '.join(dict.fromkeys([shown[0], shown[-1]]))}" if shown else ""
    return f"{type(plan.optimizer).__name__}{rate}"


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
    for key, loader in plan.loaders.items():
        if loader.is_limited:
            yield f"evaluations on '{dataset_name(key, keys)}' use the first {loader.limit:,} batches"


def _directions(facts: Facts) -> str:
    """List the metrics by direction; a metric not reported on all datasets is followed by the names of its datasets."""
    words: dict[bool | None, list[str]] = {}
    for name, metric in facts.metrics.items():
        on = "" if metric.datasets == facts.datasets else f" ({', '.join(metric.datasets)})"
        words.setdefault(metric.greater_is_better, []).append(name + on)
    for name, greater_is_better in facts.training.items():
        words.setdefault(greater_is_better, []).append(f"{name} (training)")
    said = {True: "higher is better for", False: "lower is better for", None: "no direction for"}
    return "; ".join(f"{text} {', '.join(words[greater])}" for greater, text in said.items() if greater in words)


def _steps(count: int) -> str:
    return f"{count} step{'s' * (count != 1)}"


def _epochs(count: int | None) -> str:
    return "an unknown number of epochs" if count is None else f"{count} epoch{'s' * (count != 1)}"

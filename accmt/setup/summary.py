"""Texts printed before and after a training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from accmt.checkpoint.saved_models import best_in
from accmt.display.tables import decision_table, savings_table
from accmt.distributed.strategy import count_of
from accmt.files.paths import shortened
from accmt.loop.run import Run
from accmt.model_summary import summarize
from accmt.rules import Decision, Facts, SavingRule, Stop
from accmt.rules.describe import cadence_in_words, in_words
from accmt.rules.printable import shown
from accmt.setup.plan import Plan

_MOST_ROWS = 100
_MOST_PARTS = 8


def before_training(plan: Plan, notes: list[str]) -> list[RenderableType]:
    """Describe the model, the device, the length, and each rule in words."""
    table = Table.grid(padding=(0, 2))
    for name, value in _facts(plan).items():
        table.add_row(Text(name, "bold"), Text(shown(value)))
    for rule in plan.rules.savings:
        table.add_row(Text(shown(rule.name), "bold"), Text(shown(in_words(rule, plan.facts))))
    return [table, *(Text(shown(f"note: {note}"), "yellow") for note in notes)]


def after_training(run: Run, stop: Stop | None, model_path: Path) -> list[RenderableType]:
    """Summarize the decision of each evaluation, what was saved and where, and why the training ended."""
    worth, left_out = _worth_showing(run.records.decisions)
    parts: list[RenderableType] = ["", decision_table(worth)]
    if left_out:
        where = shortened(run.records.decision_log.path)
        parts.append(Text(f"{left_out} decisions that saved nothing are left out; all are in {where}"))
    rows = [_saved(run, rule, model_path) for rule in run.engine.rules.savings]
    why = "the training is complete" if stop is None else f"stopped: {stop.reason}"
    return [*parts, "", savings_table(rows), "", Text(shown(f"{why}, after {_steps(run.position.step)}"), "bold")]


def _saved(run: Run, rule: SavingRule, model_path: Path) -> tuple[str, Mapping[str, float], int, Path | None]:
    """Return the best model that a rule has saved, for the table: its values, step and folder."""
    has_saved = run.savings is not None and rule.name in run.state.model_savings
    saving = best_in(model_path / rule.folder) if has_saved else None
    if saving is None:
        return rule.name, {}, 0, None
    return rule.name, saving.values, saving.step, shortened(saving.folder)


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
    if plan.facts.metrics:
        facts["metrics"] = _directions(plan.facts)
    if plan.options.loop.followed is not None:
        facts["scheduler"] = f"{type(plan.schedule.scheduler).__name__}, follows {plan.options.loop.followed}"
    if plan.rules.evaluate is not None:
        facts["evaluates"] = f"{cadence_in_words(plan.rules.evaluate.cadence)}, on {', '.join(plan.facts.datasets)}"
    checkpoint = plan.rules.checkpoint
    facts["checkpoints"] = "never" if checkpoint is None else cadence_in_words(checkpoint.cadence)
    facts["writes to"] = str(shortened(plan.model_path))
    return {name: text for name, text in facts.items() if text}


def _parts(plan: Plan) -> str:
    """List the parts that have parameters, with their numbers; nothing for a single one."""
    parts = [part for part in summarize(plan.module).parts if part.parameters]
    listed = [f"{part.name.removeprefix('model.')} {part.parameters:,}" for part in parts[:_MOST_PARTS]]
    more = [f"{len(parts) - _MOST_PARTS} more"] if len(parts) > _MOST_PARTS else []
    return ", ".join([*listed, *more]) if len(parts) > 1 else ""


def _limits(plan: Plan) -> Iterator[str]:
    """Yield what is left out of the data."""
    data = plan.data
    if data.is_limited:
        of = "" if data.whole_length is None else f" of {data.whole_length:,}"
        each = " on each process" if plan.accelerator.num_processes > 1 else ""
        yield f"each epoch trains on {data.batches_per_epoch:,}{of} batches{each}"
    for key, loader in plan.loaders.items():
        if loader.is_limited:
            yield f"evaluations on '{key}' use the first {loader.limit:,} batches"


def _directions(facts: Facts) -> str:
    """List the metrics by direction; a metric not reported on all datasets is followed by the names of its datasets."""
    words: dict[bool | None, list[str]] = {}
    for name, metric in facts.metrics.items():
        on = "" if metric.datasets == facts.datasets else f" ({', '.join(metric.datasets)})"
        words.setdefault(metric.greater_is_better, []).append(name + on)
    said = {True: "higher is better", False: "lower is better", None: "without direction"}
    return "; ".join(f"{', '.join(words[greater])}: {text}" for greater, text in said.items() if greater in words)


def _steps(count: int) -> str:
    return f"{count} step{'s' * (count != 1)}"


def _epochs(count: int | None) -> str:
    return "an unknown number of epochs" if count is None else f"{count} epoch{'s' * (count != 1)}"


def _worth_showing(decisions: list[Decision]) -> tuple[list[Decision], int]:
    if sum(max(1, len(decision.verdicts)) for decision in decisions) <= _MOST_ROWS:
        return decisions, 0
    worth = [decision for decision in decisions if decision.saved or decision.stop][-_MOST_ROWS:]
    return worth, len(decisions) - len(worth)

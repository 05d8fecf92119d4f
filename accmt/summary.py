"""What is printed before and after a training."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from accmt.assembly import Plan
from accmt.checkpoint.saved import Saving
from accmt.display.tables import decision_table, savings_table
from accmt.loop.engines import count_of
from accmt.loop.run import Run
from accmt.rules import Decision, SavingRule, Stop
from accmt.rules.words import cadence_in_words, in_words

_MOST_ROWS = 100


def before_training(plan: Plan, notes: list[str]) -> list[RenderableType]:
    """The model, the device, the length, and each rule in words."""
    table = Table.grid(padding=(0, 2))
    for name, value in _facts(plan).items():
        table.add_row(Text(name, "bold"), Text(value))
    for rule in plan.rules.savings:
        table.add_row(Text(rule.name, "bold"), Text(in_words(rule, plan.facts)))
    return [table, *(Text(f"note: {note}", "yellow") for note in notes)]


def after_training(
    run: Run, stop: Stop | None, savings: list[tuple[SavingRule, Saving | None]]
) -> list[RenderableType]:
    """What was decided at each evaluation, what was saved and where, and why it ended."""
    shown, left_out = _worth_showing(run.decisions)
    parts: list[RenderableType] = ["", decision_table(shown)]
    if left_out:
        parts.append(Text(f"{left_out} decisions that saved nothing are left out; all are in {run.decision_log.path}"))
    rows = [
        (rule.name, {}, 0, None) if saving is None else (rule.name, saving.values, saving.step, saving.folder)
        for rule, saving in savings
    ]
    why = "the training has run its length" if stop is None else f"stopped: {stop.reason}"
    return [*parts, "", savings_table(rows), "", Text(f"{why}, after {run.position.step} steps", "bold")]


def interrupted(run: Run) -> Text:
    """Where the training would go on."""
    step = run.position.step
    if run.checkpointed_at < 0:
        return Text(f"interrupted at step {step}; there is no checkpoint yet: run again and it starts anew", "bold")
    repeated = step - run.checkpointed_at
    again = f"; the last {repeated} will be done again" if repeated else ""
    return Text(f"interrupted at step {step}; run again and it goes on from step {run.checkpointed_at}{again}", "bold")


def _facts(plan: Plan) -> dict[str, str]:
    model, position, data = plan.parts.model, plan.position, plan.data
    total, trained = count_of(model)
    processes = plan.accelerator.num_processes
    batch = plan.options.data.batch_size * processes * data.accumulation
    factors = [f"{plan.options.data.batch_size} a process"] if processes > 1 or data.accumulation > 1 else []
    factors += [f"{processes} processes"] * (processes > 1)
    factors += [f"{data.accumulation} batches a step"] * (data.accumulation > 1)
    steps = "unknown" if position.total_steps is None else f"{position.total_steps:,}"
    facts = {
        "model": f"{type(model).__name__}, {total:,} parameters, {trained:,} of them trained",
        "device": f"{plan.accelerator.device}, {processes} process{'es' * (processes > 1)}",
        "batch": f"{batch} samples" + (f" ({', '.join(factors)})" if factors else ""),
        "length": f"{steps} steps, {_epochs(position.total_epochs)}",
    }
    if plan.rules.evaluate is not None:
        facts["evaluates"] = f"{cadence_in_words(plan.rules.evaluate.cadence)}, on {', '.join(plan.facts.datasets)}"
    checkpoint = plan.rules.checkpoint
    facts["checkpoints"] = "never" if checkpoint is None else cadence_in_words(checkpoint.cadence)
    facts["writes to"] = str(plan.model_path)
    return facts


def _epochs(count: int | None) -> str:
    return "an unknown number of epochs" if count is None else f"{count} epoch{'s' * (count != 1)}"


def _worth_showing(decisions: list[Decision]) -> tuple[list[Decision], int]:
    if sum(max(1, len(decision.verdicts)) for decision in decisions) <= _MOST_ROWS:
        return decisions, 0
    shown = [decision for decision in decisions if decision.saved or decision.stop][-_MOST_ROWS:]
    return shown, len(decisions) - len(shown)

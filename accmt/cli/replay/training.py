"""History and decisions of a training, from its folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from accmt.cli.arguments import CommandError, MetricArgument
from accmt.cli.replay.source import Source, facts_seen
from accmt.files.json_io import DamagedFile
from accmt.rules import Decision, Facts, Observation, Outcome, Reported
from accmt.rules.errors import listed
from accmt.rules.printable import escaped
from accmt.rules.replay import History
from accmt.tracking.history import entries_of, observations_in
from accmt.tracking.journal import DECISIONS, HISTORY
from accmt.tracking.training_file import read_description

_T = TypeVar("_T")


def open_training(folder: Path, directions: Sequence[MetricArgument]) -> Source:
    """Read the folder of a training.

    Raises:
        CommandError: If it does not contain a training, or something in it is damaged.
    """
    if not (folder / HISTORY).is_file():
        raise CommandError(f"{folder} is not the folder of a training: it has no {HISTORY}")
    observations = _read(lambda: observations_in(folder))
    decisions = read_decisions(folder) if (folder / DECISIONS).is_file() else ()
    try:
        description = read_description(folder)
    except DamagedFile as error:
        raise CommandError(str(error)) from None
    stops = tuple(decision for decision in decisions if decision.stop is not None and not decision.verdicts)
    facts = facts_seen(observations, directions, None if description is None else description.facts)
    facts = replace(facts, metrics={name: _recorded(name, facts, observations) for name in facts.metrics})
    failures = {
        (decision.progress.evaluation, verdict.rule): verdict.reason
        for decision in decisions
        for verdict in decision.verdicts
        if verdict.outcome is Outcome.FAILED
    }
    checkpoints = frozenset(d.progress.evaluation for d in decisions if d.verdicts and d.checkpoint)
    return Source(History(observations, stops, failures, checkpoints), facts, {}, description, decisions)


def _recorded(name: str, facts: Facts, observations: Sequence[Observation]) -> Reported:
    """Return a metric, which has replicates only if they were recorded at each of its evaluations."""
    metric = facts.metrics[name]
    values = [
        (dataset, observation)
        for observation in observations
        for dataset, table in observation.values.items()
        if name in table and not observation.initial
    ]
    if metric.no_replicates or all(name in seen.replicates.get(dataset, ()) for dataset, seen in values):
        return metric
    return replace(metric, no_replicates="only a training with such a rule records its replicates, at every evaluation")


def read_decisions(folder: Path) -> tuple[Decision, ...]:
    """Read the decisions of a training.

    Raises:
        CommandError: If the folder does not contain a training, or a line is damaged.
    """
    if not folder.is_dir():
        raise CommandError(f"{folder}: there is no such folder")
    if not (folder / DECISIONS).is_file():
        near = sorted(path.parent.name for path in folder.glob(f"*/{DECISIONS}"))
        hint = f"; these folders in it are: {escaped(listed(near, 12))}" if near else ""
        raise CommandError(f"{folder} is not the folder of a training: it has no {DECISIONS}{hint}")
    return _read(lambda: entries_of(folder / DECISIONS, Decision.from_json, "a decision"))


def _read(read: Callable[[], _T]) -> _T:
    try:
        return read()
    except (ValueError, OSError) as error:
        raise CommandError(escaped(error)) from None

"""Values that rules with `by k se` need on every resample of a dataset, not only on the dataset itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from accmt.rules.evaluator import Scene, Value, evaluate_expression
from accmt.rules.history_functions import Memory, memories_of
from accmt.rules.nodes import Call, Everywhere, Expression, Measure
from accmt.rules.rule import Facts, Rules, SavingRule
from accmt.rules.static_checks import calls_over_time, measures
from accmt.rules.store import Observation


def replicated(rules: Rules, facts: Facts) -> dict[str, frozenset[str]]:
    """Return metric -> datasets whose replicates the rules need; empty if none asks for standard errors."""
    found: dict[str, frozenset[str]] = {}
    for rule in rules.savings:
        for measure in measures(rule.saving.ranking) if asks_for_errors(rule) else ():
            metric = measure.metric.text
            if metric in facts.metrics:
                found[metric] = found.get(metric, frozenset()) | _datasets(measure, facts)
    return found


def asks_for_errors(rule: SavingRule) -> bool:
    """Return whether a rule compares models by standard errors."""
    return rule.saving.by is not None and rule.saving.by.standard_errors


class Resamples:
    """Objectives on every resample: all that values go through, component by component.

    Functions over time have a memory for each replicate.
    """

    def __init__(self, rules: Rules, facts: Facts) -> None:
        self._facts = facts
        self._needed = replicated(rules, facts)
        self._roots = [rule.saving.ranking for rule in rules.savings if asks_for_errors(rule)]
        self._calls = {call for root in self._roots for call in calls_over_time(root)}
        self._memories: list[list[tuple[Call, Memory]]] = []
        self._scenes: list[Scene] = []

    def needed(self, observation: Observation) -> Observation:
        """Return the observation with those of its replicates that the rules need."""
        if not observation.replicates:
            return observation
        replicates = {
            dataset: {metric: values for metric, values in table.items() if dataset in self._needed.get(metric, ())}
            for dataset, table in observation.replicates.items()
        }
        return replace(observation, replicates=replicates)

    def update(self, scene: Scene) -> None:
        """Take the replicates of an evaluation, which the store has."""
        stores = list(scene.store.on_resamples()) if self._roots else []
        if len(self._memories) != len(stores):
            self._memories = [memories_of(self._roots, self._facts) for _ in stores]
        self._scenes, directions = [], scene.greater_is_better
        for store, memories in zip(stores, self._memories, strict=True):
            remembered: dict[Call, Value] = {}
            resampled = Scene(store, scene.progress, scene.length, scene.train_loss, remembered, directions)
            for call, memory in memories:
                memory.update(evaluate_expression(call.arguments[0], resampled))  # type: ignore[arg-type]
                remembered[call] = memory.value
            self._scenes.append(resampled)

    def values(self, objective: Expression) -> tuple[float, ...]:
        """Return the replicates of an objective in the last evaluation."""
        return tuple(float(evaluate_expression(objective, scene)) for scene in self._scenes)

    def to_json(self, call: Call) -> dict[str, Any]:
        """Return what a function over time remembers for each replicate; empty if no rule needs it."""
        if call not in self._calls:
            return {}
        return {"replicates": [memory.to_json() for row in self._memories for at, memory in row if at == call]}

    def can_restore(self, call: Call, saved: Mapping[str, Any]) -> bool:
        """Return whether the replicates of a function over time were saved, as many as now, if a rule needs them."""
        rows, count = saved.get("replicates"), self._facts.replicates
        return call not in self._calls or (rows is not None and (not rows or count in (None, len(rows))))

    def restore(self, saved: Mapping[Call, Mapping[str, Any]]) -> None:
        """Restore what `to_json` returned for each function over time."""
        rows = {call: saved[call]["replicates"] for call in self._calls if call in saved}
        count = max(map(len, rows.values()), default=0)
        self._memories = [memories_of(self._roots, self._facts) for _ in range(count)]
        for r, memories in enumerate(self._memories):
            for call, memory in memories:
                if r < len(rows.get(call, ())):
                    memory.restore(rows[call][r])


def _datasets(measure: Measure, facts: Facts) -> frozenset[str]:
    if not measure.datasets or isinstance(measure.datasets[0], Everywhere):
        return frozenset(facts.metrics[measure.metric.text].datasets)
    return frozenset(dataset.text for dataset in measure.datasets if not isinstance(dataset, Everywhere))

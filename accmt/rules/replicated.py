"""Values that rules with `by k se` need on every resample of a dataset, not only on the dataset itself."""

from __future__ import annotations

from collections.abc import Iterator

from accmt.rules.nodes import Everywhere, Measure
from accmt.rules.rule import Facts, Rules, SavingRule
from accmt.rules.static_checks import measures


def replicated(rules: Rules, facts: Facts) -> dict[str, frozenset[str]]:
    """Return metric -> datasets whose replicates the rules need; empty if none asks for standard errors."""
    found: dict[str, frozenset[str]] = {}
    for measure in (measure for rule in rules.savings for measure in ranked_by_errors(rule)):
        metric = measure.metric.text
        if metric in facts.metrics:
            found[metric] = found.get(metric, frozenset()) | _datasets(measure, facts)
    return found


def ranked_by_errors(rule: SavingRule) -> Iterator[Measure]:
    """Yield the measures that need replicates: those of the objectives of a rule with `by k se`."""
    by = rule.saving.by
    return measures(rule.saving.ranking) if by is not None and by.standard_errors else iter(())


def _datasets(measure: Measure, facts: Facts) -> frozenset[str]:
    if not measure.datasets or isinstance(measure.datasets[0], Everywhere):
        return frozenset(facts.metrics[measure.metric.text].datasets)
    return frozenset(dataset.text for dataset in measure.datasets if not isinstance(dataset, Everywhere))

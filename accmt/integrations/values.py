"""Checks the values of an evaluation against what was declared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from accmt.config.errors import Problem, did_you_mean, must_be, raise_problems
from accmt.integrations.arguments import Declaration
from accmt.integrations.counters import as_number
from accmt.rules import RuleEngine
from accmt.rules.errors import listed
from accmt.rules.nodes import Node
from accmt.rules.static_checks import measures
from accmt.rules.store import VALID_LOSS


def checked_values(given: Any, engine: RuleEngine, declared: Declaration) -> dict[str, dict[str, float]]:
    """Return dataset -> metric -> number. Held-out datasets may be missing.

    Raises:
        ConfigError: With everything that is missing, not declared, or not a number.
    """
    problems: list[Problem] = []
    if not isinstance(given, Mapping):
        problems.append(Problem("values", must_be('a dictionary such as {"dev": {"accuracy": 0.9}}', given)))
    by_key = {str(key): metrics for key, metrics in given.items()} if isinstance(given, Mapping) else {}
    facts = engine.facts
    known = (*facts.datasets, *declared.held_out)
    for key in by_key:
        if key not in known:
            near = did_you_mean(key, known)
            problems.append(Problem(key, f"unknown dataset{near} The datasets are: {listed(known) or 'none'}"))
    is_loss_needed = VALID_LOSS in declared.metrics or any(_names_loss(node) for node in _nodes(engine))
    for key in facts.datasets if not problems else ():
        if key not in by_key:
            problems.append(Problem(key, f"no values are given. The datasets are: {listed(facts.datasets)}"))
            continue
        names = [name for name, metric in facts.metrics.items() if key in metric.datasets]
        missing = [name for name in names if name not in _keys(by_key[key])]
        needed = [name for name in missing if name != VALID_LOSS or is_loss_needed]
        problems += [Problem(f"{key}.{name}", "is missing: no value is given") for name in needed]
    found = {}
    for key, metrics in by_key.items():
        on = [name for name, (_, keys) in declared.metrics.items() if keys is None or key in keys]
        found[key] = _numbers(key, metrics, list(dict.fromkeys([*on, VALID_LOSS])), problems)
    raise_problems(problems, "evaluated(...)")
    return found


def _numbers(key: str, metrics: Any, names: list[str], problems: list[Problem]) -> dict[str, float]:
    """Return metric -> number of one dataset."""
    if not isinstance(metrics, Mapping):
        problems.append(Problem(key, must_be('a dictionary such as {"accuracy": 0.9}', metrics)))
        return {}
    found = {}
    for name, value in metrics.items():
        if name not in names:
            near = did_you_mean(str(name), names)
            problems.append(Problem(f"{key}.{name}", f"unknown metric{near} Declared are: {listed(names)}"))
            continue
        try:
            found[name] = float(as_number(value, "the value"))
        except TypeError as error:
            problems.append(Problem(f"{key}.{name}", str(error)))
    return found


def _keys(metrics: Any) -> Iterable[str]:
    return metrics if isinstance(metrics, Mapping) else ()


def _nodes(engine: RuleEngine) -> list[Node]:
    return [*(rule.saving for rule in engine.rules.savings), *(stop.condition for stop in engine.rules.stop_when)]


def _names_loss(node: Node) -> bool:
    return any(measure.metric.text == VALID_LOSS for measure in measures(node))

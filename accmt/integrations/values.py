"""Checks the values of an evaluation against what was declared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from accmt.config.errors import Problem, did_you_mean, must_be, raise_problems
from accmt.integrations.arguments import Declaration
from accmt.integrations.counters import as_number
from accmt.rules import RuleEngine, replicated
from accmt.rules.errors import listed
from accmt.rules.nodes import Node
from accmt.rules.static_checks import measures
from accmt.rules.store import VALID_LOSS

Table = dict[str, dict[str, float]]


_NO_SCORES = "needs a score for each sample, as a rule with 'se' compares it: give a list, an array or a tensor"


class Replicates:
    """Replicates of means over samples; numpy is imported only where there are scores of samples.

    Args:
        count: The number of resamples of each dataset.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._draws: Any = None
        self._sizes: dict[str, int] = {}

    def of(self, dataset: str, scores: Any) -> tuple[float, ...]:
        """Return the replicates of the mean of scores, an array with a number for each sample of a dataset.

        Raises:
            ValueError: There are none, or not as many as before, so that nothing could be compared.
        """
        from accmt.resampling import Draws, resampled_mean, rounded

        if scores is None:
            raise ValueError(_NO_SCORES)
        before = self._sizes.setdefault(dataset, len(scores))
        if before != len(scores):
            raise ValueError(
                f"has {len(scores)} scores, and had {before} before: give those of the same samples always"
            )
        self._draws = self._draws or Draws(self._count)
        mean = resampled_mean(scores)
        return tuple(rounded(mean(counts)) for counts in self._draws.of(dataset, len(scores)))


def checked_values(
    given: Any, engine: RuleEngine, declared: Declaration, draws: Replicates
) -> tuple[Table, dict[str, dict[str, tuple[float, ...]]]]:
    """Return dataset -> metric -> number, and the replicates that rules need. Held-out datasets may be missing.

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
    scores = {key: _scores(metrics) for key, metrics in by_key.items()}
    replicates = _replicates(engine, scores, draws, problems) if not problems else {}
    found = {}
    for key, metrics in by_key.items():
        metrics = (
            {**metrics, **{name: float(each.mean()) for name, each in scores[key].items()}} if scores[key] else metrics
        )
        on = [name for name, (_, keys) in declared.metrics.items() if keys is None or key in keys]
        found[key] = _numbers(key, metrics, list(dict.fromkeys([*on, VALID_LOSS])), problems)
    raise_problems(problems, "evaluated(...)")
    return found, replicates


def _replicates(
    engine: RuleEngine, scores: Mapping[str, Mapping[str, Any]], draws: Replicates, problems: list[Problem]
) -> dict[str, dict[str, tuple[float, ...]]]:
    """Return dataset -> metric -> replicates, of what rules compare by standard errors."""
    found: dict[str, dict[str, tuple[float, ...]]] = {}
    for name, key in ((name, key) for name, keys in replicated(engine.rules, engine.facts).items() for key in keys):
        try:
            found.setdefault(key, {})[name] = draws.of(key, scores[key].get(name))
        except ValueError as error:
            problems.append(Problem(f"{key}.{name}", str(error)))
    return found


def _scores(metrics: Any) -> dict[str, Any]:
    """Return metric -> scores as an array, where a value is a list, array or tensor of more than one number."""
    several = (
        {name: value for name, value in metrics.items() if _is_several(value)} if isinstance(metrics, Mapping) else {}
    )
    if not several:
        return {}
    import numpy as np

    plain = {name: value.detach().cpu() if hasattr(value, "detach") else value for name, value in several.items()}
    arrays = {}
    for name, value in plain.items():
        with suppress(TypeError, ValueError):  # it is not a number either, which is said
            arrays[name] = np.asarray(value, dtype=np.float64)
    return {name: array for name, array in arrays.items() if array.ndim == 1}


def _is_several(value: Any) -> bool:
    shape = tuple(getattr(value, "shape", ()))
    return (isinstance(value, list | tuple) and len(value) > 1) or (len(shape) == 1 and shape[0] > 1)


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

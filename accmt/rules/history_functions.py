"""Functions over time, with the state of each between evaluations.

Each takes the value of one evaluation (`update`), has the value of the function (`value`), and converts to JSON and
back. NaN is skipped: it changes no average and no best value, and `stalled` counts it as an evaluation without
improvement.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Any, Protocol

from accmt.rules.codec import count_from, from_text, to_text
from accmt.rules.direction import DIRECTED, direction_of
from accmt.rules.evaluator import Value, exceeds, mean
from accmt.rules.nodes import Call, Node, Number, Quantity
from accmt.rules.rule import Facts
from accmt.rules.static_checks import calls_over_time


class Memory(Protocol):
    """State of one function over time."""

    @property
    def value(self) -> Value:
        """Value of the function after the last evaluation; NaN (or False) before the first."""

    def update(self, value: float) -> None:
        """Add the value of one evaluation."""

    def to_json(self) -> Any: ...
    def restore(self, data: Any) -> None: ...


def memories_of(roots: Iterable[Node], facts: Facts) -> list[tuple[Call, Memory]]:
    """Return the functions over time in checked nodes, each once and empty, inner calls before outer ones."""
    found: dict[Call, Memory] = {}
    for root in roots:
        for call in calls_over_time(root):
            if call not in found:
                directed = call.function in DIRECTED
                found[call] = memory_of(call, greater_is_better=directed and direction_of(call, facts) is True)
    return list(found.items())


def memory_of(call: Call, greater_is_better: bool) -> Memory:
    """Create an empty memory for a call that the checker has accepted."""
    numbers = [argument.value for argument in call.arguments[1:] if isinstance(argument, Number | Quantity)]
    match call.function:
        case "avg":
            return Average(int(numbers[0]))
        case "ema":
            return ExponentialAverage(numbers[0])
        case "best":
            return Best(greater_is_better)
        case "stalled":
            return Stalled(int(numbers[0]), numbers[1] if len(numbers) > 1 else 0.0, greater_is_better)
    raise ValueError(f"'{call.function}' does not run over time")


class Average:
    """`avg(x, n)`: the mean of the last n values, or of all if there are fewer."""

    def __init__(self, size: int) -> None:
        self._values: deque[float] = deque(maxlen=size)

    @property
    def value(self) -> float:
        return mean(self._values)

    def update(self, value: float) -> None:
        if not math.isnan(value):
            self._values.append(value)

    def to_json(self) -> list[float | str]:
        return [to_text(value) for value in self._values]

    def restore(self, data: list[float | str]) -> None:
        self._values.clear()
        self._values.extend(from_text(value) for value in data)


class _OneNumber:
    """State that is the value itself."""

    value = math.nan

    def to_json(self) -> float | str:
        return to_text(self.value)

    def restore(self, data: float | str) -> None:
        self.value = from_text(data)


class ExponentialAverage(_OneNumber):
    """`ema(x, a)`: a*x + (1-a)*previous, starting with the first value."""

    def __init__(self, weight: float) -> None:
        self._weight = weight

    def update(self, value: float) -> None:
        if math.isnan(self.value) or self._weight == 1:
            self.value = self.value if math.isnan(value) else value
        elif not math.isnan(value):
            self.value = self._weight * value + (1 - self._weight) * self.value


class Best(_OneNumber):
    """`best(x)`: the best value so far, the current one included."""

    def __init__(self, greater_is_better: bool) -> None:
        self._pick = max if greater_is_better else min

    def update(self, value: float) -> None:
        if math.isnan(self.value):
            self.value = value
        elif not math.isnan(value):
            self.value = self._pick(self.value, value)


class Stalled:
    """`stalled(x, n, delta)`: true if none of the last n evaluations improved x by more than delta."""

    def __init__(self, patience: int, delta: float, greater_is_better: bool) -> None:
        self._patience, self._delta, self._sign = patience, delta, 1.0 if greater_is_better else -1.0
        self._reference = math.nan
        self._waited = 0

    @property
    def value(self) -> bool:
        return self._waited >= self._patience

    def update(self, value: float) -> None:
        if not math.isnan(value) and (math.isnan(self._reference) or self._improves(value)):
            self._reference, self._waited = value, 0
        else:
            self._waited += 1

    def _improves(self, value: float) -> bool:
        better = self._sign * value > self._sign * self._reference
        return better and (self._delta == 0 or exceeds(value, self._reference, self._delta))

    def to_json(self) -> dict[str, Any]:
        return {"reference": to_text(self._reference), "waited": self._waited}

    def restore(self, data: dict[str, Any]) -> None:
        self._reference, self._waited = from_text(data["reference"]), count_from(data["waited"])

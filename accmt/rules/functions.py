"""Functions of the language: how each is called and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Function:
    """Signature of a function.

    `over` says what it runs over: `datasets` (takes a measure), `time` (remembers earlier evaluations) or `objective`
    (wraps a whole objective and sets its direction).
    """

    usage: str
    over: Literal["datasets", "time", "objective"]
    fewest: int = 1
    most: int = 1
    boolean: bool = False


FUNCTIONS: dict[str, Function] = {
    "mean": Function("mean(accuracy)", "datasets"),
    "worst": Function("worst(accuracy)", "datasets"),
    "lowest": Function("lowest(accuracy)", "datasets"),
    "highest": Function("highest(accuracy)", "datasets"),
    "avg": Function("avg(accuracy, 3)", "time", 2, 2),
    "ema": Function("ema(accuracy, 0.5)", "time", 2, 2),
    "best": Function("best(accuracy)", "time"),
    "stalled": Function("stalled(accuracy, 3) or stalled(accuracy, 3, 0.01)", "time", 2, 3, boolean=True),
    "max": Function("max(accuracy)", "objective"),
    "min": Function("min(valid_loss)", "objective"),
}

"""Findings of a rehearsal, and what they mean for the whole training. Does not import torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

from rich.filesize import decimal

from accmt.rules import CadenceRule, Length
from accmt.rules.codec import Jsonable
from accmt.rules.units import PERCENT, SECONDS


@dataclass(frozen=True, slots=True)
class Rehearsal(Jsonable):
    """Findings of a rehearsal; `str(rehearsal)` is a table of them.

    Attributes:
        costs: "step", "evaluation on ...", "save ..." and "checkpoint" -> seconds and bytes each time, and how often
            the whole training does it, at most; None for what is unknown.
        notes: Lines about disk and memory, and the warnings of the training.
        not_tried: Why no resume was tried; empty if one was.
        differences: How the resumed training differs from the uninterrupted one; None if that was not tried.
    """

    costs: Mapping[str, tuple[float | None, int, int | None]]
    notes: list[str]
    not_tried: str
    differences: list[str] | None = None

    @property
    def seconds(self) -> float | None:
        """Seconds of the whole training, if each evaluation saves a model for each rule; None if unknown."""
        totals = [_product(seconds, times) for seconds, _, times in self.costs.values()]
        return None if None in totals else sum(filter(None, totals))

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        width = max(map(len, self.costs))
        yield f"{'':{width}}{'each':>12}{'times':>12}{'together':>18}{'size':>12}"
        for name, (each, size, times) in self.costs.items():
            count = "unknown" if times is None else f"{times:,}"
            line = f"{name:{width}}{_time(each):>12}{count:>12}{_time(_product(each, times)):>18}"
            yield f"{line}{decimal(size) if size else '':>12}".rstrip()
        yield from (f"the whole training takes {_time(self.seconds)}", *self.notes)
        if self.differences is None:
            yield f"resume: not tried, because {self.not_tried}"
        else:
            yield f"resume after SIGKILL: {'NOT exact:' if self.differences else 'exact, bit by bit'}"
        yield from (f"  {line}" for line in self.differences or ())


def times(rule: CadenceRule, length: Length, per_step: float | None, evaluations: int | None) -> int | None:
    """Return how often a cadence comes due at most, counting the end of the training; None if that is unknown."""
    total = length.total_steps
    if total is None:
        return None
    steps: dict[str, float | None] = {"step": 1, PERCENT: total / 100, "epoch": length.steps_per_epoch}
    steps |= {"sample": 1 / (length.samples_per_step or math.inf), "evaluation": total / (evaluations or 1)}
    steps |= {unit: seconds / per_step if per_step else None for unit, seconds in SECONDS.items()}
    interval = min(quantity.value * (steps[quantity.unit] or math.inf) for quantity in rule.cadence.every)
    return max(1, math.ceil(total / max(1, interval)))


def _product(each: float | None, number: int | None) -> float | None:
    return None if each is None or number is None else each * number


def _time(seconds: float | None) -> str:
    if seconds is None or seconds < 60:
        return "unknown" if seconds is None else f"{seconds:.3g} s"
    return str(timedelta(seconds=round(seconds)))

"""Counting: how many tries a case had, how many hit the moment they were meant for, how many survived.

    for attempt in tally("a killed save", small=12, full=200, hits=0.5):
        with attempt:
            delay = attempt.chance.uniform(0, 0.1)
            attempt.plan = f"killed after {delay:.3f} s"
            ...
            if killed_inside:
                attempt.hit()
            assert nothing_is_lost

What a block raises makes its attempt a lost one, and the others go on. After the last one the test fails if any was
lost, or if fewer than the share `hits` hit their moment.
"""

from __future__ import annotations

import json
import random
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

_SHOWN = 10


class Attempt:
    """One try. `chance` is its own source of randomness: the same one each time the test runs.

    Attributes:
        number: Which try it is, from 0.
        chance: Seeded by the case and the number.
        plan: What is done in it, in words, for the report of a lost one.
    """

    def __init__(self, case: str, number: int) -> None:
        self.number = number
        self.chance = random.Random(f"{case}, {number}")
        self.plan = ""
        self.is_hit = False
        self.reason: str | None = None

    def hit(self) -> None:
        """The try has hit the moment that it was meant for."""
        self.is_hit = True

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType) -> bool:
        if not isinstance(error, Exception | pytest.fail.Exception):
            return False
        frames = traceback.extract_tb(trace)
        places = " <- ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
        plan = f" ({self.plan})" if self.plan else ""
        self.reason = f"try {self.number}{plan}: {type(error).__name__}: {error}\n    at {places}"
        return True


@dataclass
class Tally:
    """The tries of a case. Iterate over it once, to the end.

    Attributes:
        case: What is tried, in a few words; unique in its file.
        tries: How many times.
        hits: The least share of them that has to hit its moment; None where there is nothing to miss.
    """

    case: str
    tries: int
    hits: float | None = None
    attempts: list[Attempt] = field(default_factory=list)
    is_over: bool = False

    def __iter__(self) -> Iterator[Attempt]:
        for number in range(self.tries):
            attempt = Attempt(self.case, number)
            self.attempts.append(attempt)
            yield attempt
        self.is_over = True
        self._judge()

    @property
    def lost(self) -> list[str]:
        """Why each lost try was lost."""
        return [attempt.reason for attempt in self.attempts if attempt.reason is not None]

    @property
    def hit(self) -> int | None:
        """How many tries have hit their moment; None where there is nothing to miss."""
        return None if self.hits is None else sum(attempt.is_hit for attempt in self.attempts)

    def to_json(self) -> dict[str, Any]:
        lost = len(self.lost)
        tried = len(self.attempts)
        counts = {"tries": tried, "hits": self.hit, "survived": tried - lost, "lost": lost}
        return {"case": self.case, **counts, "complete": self.is_over}

    def _judge(self) -> None:
        if self.lost:
            more = f"\n... and {len(self.lost) - _SHOWN} more" if len(self.lost) > _SHOWN else ""
            told = "\n".join(self.lost[:_SHOWN])
            pytest.fail(f"{self.case}: lost {len(self.lost)} of {self.tries}\n{told}{more}", pytrace=False)
        if self.hits is not None and self.hit < self.hits * self.tries:
            text = f"{self.case}: only {self.hit} of {self.tries} hit their moment, and {self.hits:.0%} have to"
            pytest.fail(f"{text}: nothing is proven", pytrace=False)


def write_counts(folder: Path, name: str, place: dict[str, Any], tally: Tally) -> None:
    """Write the counts of a case for `report.py`: whole, or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{name}.tmp"
    temporary.write_text(json.dumps({**place, **tally.to_json()}), encoding="utf-8")
    temporary.rename(folder / f"{name}.json")

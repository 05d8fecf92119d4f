"""Steps and moments at which something may be due, so that any other step costs only a comparison."""

from __future__ import annotations

import math

from accmt.integrations import processes
from accmt.integrations.counters import Counters
from accmt.rules import RuleEngine
from accmt.rules.nodes import Counter, Quantity, walk
from accmt.rules.units import SECONDS

_LOOK_EVERY = 1.0  # seconds


class Timing:
    """The next step and the next moment at which something may be due, besides the end of an epoch."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._next_step: float = 0
        self._next_moment = math.inf
        self._next_look = 0.0
        self._looked = 0, 0.0  # the step and the elapsed seconds of the last look
        self._next_shared = 0  # the step of the next one, if there are several processes
        self._is_clocked = False

    def follow(self, engine: RuleEngine) -> None:
        """Follow an engine from now on."""
        self._is_clocked = engine.watches or _uses_clock(engine)
        self._counters.looks = engine.watches

    def is_due(self) -> bool:
        """Return whether something may be due at this step."""
        counters = self._counters
        if counters.step >= self._next_step or counters.ended_epoch:
            return True
        return self._next_moment != math.inf and counters.clock.elapsed() >= self._next_moment

    def look(self, engine: RuleEngine) -> tuple[float, float | None]:
        """Return the elapsed seconds, and the mean loss since the last look if a condition asks for it now.

        If a rule depends on them, they are those of the main process, which also says when all look again.
        """
        counters = self._counters
        if not self._is_clocked:
            return counters.clock.elapsed(), None

        def look() -> tuple[float, float | None, int]:
            now = counters.clock.elapsed()
            is_time = engine.watches and now >= self._next_look
            steps, seconds = counters.step - self._looked[0], now - self._looked[1]
            ahead = max(1, int(steps / seconds * _LOOK_EVERY)) if seconds > 0 else 1
            return now, counters.looked.mean if is_time else None, counters.step + ahead

        elapsed, loss, self._next_shared = processes.from_main(look)
        self._looked = counters.step, elapsed
        if loss is not None:
            counters.looked.clear()
            self._next_look = elapsed + _LOOK_EVERY
        return elapsed, loss

    def update(self, engine: RuleEngine, total_steps: int | None, *, is_waiting: bool) -> None:
        """Find the next step and moment; all steps if something `is_waiting`."""
        step = self._counters.step
        ahead = [at for at in (engine.next_step, total_steps) if at is not None and at > step]
        self._next_step, self._next_moment = min(ahead, default=math.inf), math.inf
        if is_waiting:
            self._next_step = 0
        elif self._is_clocked and processes.count() > 1:
            self._next_step = min(self._next_step, self._next_shared)
        elif self._is_clocked:
            self._next_moment = min(engine.next_elapsed, self._next_look if engine.watches else math.inf)


def _uses_clock(engine: RuleEngine) -> bool:
    """Return whether a cadence or a condition between evaluations depends on the clock."""
    rules = engine.rules
    nodes = [stop.condition for stop in rules.stop_when]
    cadences = [rule.cadence for rule in (rules.evaluate, rules.checkpoint) if rule is not None]
    return any(
        (isinstance(node, Counter) and node.name == "elapsed") or (isinstance(node, Quantity) and node.unit in SECONDS)
        for root in (*nodes, *cadences)
        for node in walk(root)
    )

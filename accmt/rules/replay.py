"""Replays a recorded training: what would other rules have saved, and when would they have stopped?

The same engine decides as during the training. A history may lack data: `unanswerable` lists the rules that need it,
and `asked_late` the conditions that a training also checks between evaluations, and a replay does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from accmt.rules.between_evaluations import asks_for, counted, watched
from accmt.rules.decision import REQUESTED, Decision
from accmt.rules.engine import RuleEngine
from accmt.rules.errors import RuleProblem
from accmt.rules.nodes import Amount, Counter, Expression, Measure, Node, Quantity, walk
from accmt.rules.progress import Progress
from accmt.rules.rule import CadenceRule, Facts, Rules, StopCondition
from accmt.rules.store import TRAIN_LOSS, Observation
from accmt.rules.units import PERCENT, SECONDS

Need = Literal["elapsed", "epoch", "samples", "length", "steps_per_epoch", "train_loss", "replicates"]

_NEEDS: dict[Need, str] = {
    "elapsed": "the elapsed time",
    "epoch": "the epochs",
    "samples": "the samples seen",
    "length": "the length of the training",
    "steps_per_epoch": "the steps of an epoch",
    "train_loss": "the training loss",
    "replicates": "the standard error of a difference",
}


@dataclass(frozen=True, slots=True)
class History:
    """Record of a training.

    Attributes:
        observations: The results of its evaluations, in order.
        stops: The decisions to stop that it made between evaluations.
        failures: (Evaluation, name of a rule) -> why the model that the rule saved could not be written.
        checkpoints: The evaluations at which a checkpoint was due. If that depends on the clock, it cannot be
            recomputed.
    """

    observations: tuple[Observation, ...]
    stops: tuple[Decision, ...] = ()
    failures: Mapping[tuple[int, str], str] = field(default_factory=dict)
    checkpoints: frozenset[int] = frozenset()


def replay(rules: Rules, facts: Facts, history: History) -> list[Decision]:
    """Return the decisions of these rules, up to the one that stops the training.

    for each evaluation:
        pass the steps before it, where a condition may stop the training
        decide

    Conditions on counters are checked at every step, as in a training, except on `elapsed`, which is known at
    evaluations only. A recorded stop between evaluations is repeated if its condition is among the rules; one that the
    script requested does not end the replay if more was recorded after it.
    Between evaluations, samples and time have the values of the previous one. The rules must have passed `check`.
    """
    player = _Player(rules, facts, history)
    decisions: list[Decision] = []
    before = Progress()
    for observation in history.observations:
        now = observation.progress
        if not observation.initial:
            decisions += player.pass_steps(before, replace(now, evaluation=now.evaluation - 1))
            before = now
        stopped = bool(decisions and _ends(decisions[-1]))
        if stopped and decisions[-1].progress.step < now.step:
            return decisions
        decisions.append(player.decide(observation))
        if stopped or _ends(decisions[-1]):
            return decisions
    last = max(history.stops, key=lambda decision: decision.progress.step, default=None)
    return decisions if last is None else [*decisions, *player.pass_steps(before, last.progress)]


def unanswerable(rules: Rules, lacking: Mapping[Need, str]) -> list[RuleProblem]:
    """Return a problem for each part of a rule that needs missing data; `lacking` says why it is missing."""
    texts: list[tuple[str, Node]] = [(rule.text, rule.saving) for rule in rules.savings]
    texts += [(stop.text, stop.condition) for stop in rules.stop_when]
    return [problem for text, node in texts for problem in _lacked(text, node, lacking)]


def asked_late(rules: Rules, history: History, recorded: Rules | None) -> tuple[StopCondition, ...]:
    """Return the conditions that a training checks between evaluations, and a replay at evaluations only.

    Conditions of the training itself (`recorded`) are left out: the history records their stops.
    """
    known = {stop.condition for stop in recorded.stop_when} if recorded is not None else set()
    training = {name for observation in history.observations for name in observation.training}

    def is_late(condition: Expression) -> bool:
        return any(watched(condition, training)) or any(asks_for(part, "elapsed") for part in counted(condition))

    return tuple(stop for stop in rules.stop_when if stop.condition not in known and is_late(stop.condition))


class _Player:
    """Replays the steps and evaluations of a training."""

    def __init__(self, rules: Rules, facts: Facts, history: History) -> None:
        self.engine = RuleEngine(replace(rules, evaluate=None, log=None), facts)
        self._length = facts.length
        self._failures = history.failures
        self._counts = any(any(counted(stop.condition)) for stop in rules.stop_when)
        asked = {REQUESTED, *(str(stop.condition) for stop in rules.stop_when)}
        self._checkpoints = history.checkpoints if _is_clocked(rules.checkpoint) else None
        self._stops = {d.progress.step: d for d in history.stops if d.stop is not None and d.stop.asked_by in asked}

    def pass_steps(self, before: Progress, now: Progress) -> list[Decision]:
        """Advance from one moment to another and return the decisions in between, up to one that stops the training."""
        step, passed = before.step, []
        while step < now.step:
            step = min([now.step, *self._moments(step)])
            progress = now if step == now.step else self._between(before, step)
            stop = self._stop_at(progress)
            self.engine.after_step(progress)
            passed += [] if stop is None else [stop]
            if stop is not None and stop.stop is not None and _ends(stop):
                self.engine.stay_stopped(stop.stop)
                break
        return passed

    def decide(self, observation: Observation) -> Decision:
        """Return the decision after an evaluation. A saving that failed in the training fails here, too."""
        decision = self.engine.after_evaluation(observation)
        if self._checkpoints is not None and not observation.initial:
            decision = replace(decision, checkpoint=decision.progress.evaluation in self._checkpoints)
        for verdict in decision.saved:
            why = self._failures.get((decision.progress.evaluation, verdict.rule))
            if why is not None:
                decision = self.engine.undo_saving(decision, verdict.rule, why)
        return decision

    def _moments(self, step: int) -> Iterator[int]:
        """Yield the steps after this one at which a decision is possible."""
        if self.engine.next_step is not None and self.engine.next_step > step:
            yield self.engine.next_step
        per_epoch = self._length.steps_per_epoch
        if per_epoch is not None and (self._counts or self.engine.rules.checkpoint is not None):
            yield (step // per_epoch + 1) * per_epoch
        yield from (at for at in self._stops if at > step)

    def _between(self, before: Progress, step: int) -> Progress:
        """Return the counters at a step between two evaluations."""
        per_epoch = self._length.steps_per_epoch
        if per_epoch is None:
            return replace(before, step=step, step_in_epoch=before.step_in_epoch + step - before.step)
        return replace(before, step=step, epoch=step // per_epoch, step_in_epoch=step % per_epoch)

    def _stop_at(self, progress: Progress) -> Decision | None:
        if progress.step in self._stops:
            return self._stops[progress.step]
        stop = self.engine.stop_at(progress, is_timed=False)
        return None if stop is None else Decision(progress, stop=stop)


def _ends(decision: Decision) -> bool:
    """Return whether a rule stops the training in this decision, not the script."""
    return decision.stop is not None and decision.stop.asked_by != REQUESTED


def _is_clocked(rule: CadenceRule | None) -> bool:
    """Return whether the cadence depends on the clock."""
    return rule is not None and any(isinstance(n, Quantity) and n.unit in SECONDS for n in walk(rule.cadence))


def _lacked(text: str, root: Node, lacking: Mapping[Need, str]) -> Iterator[RuleProblem]:
    told: set[Need] = set()
    for node in walk(root):
        need = _need(node)
        if need is not None and need in lacking and need not in told:
            told.add(need)
            yield RuleProblem(f"'{node}' needs {_NEEDS[need]}, which is not known here", text, node.span, lacking[need])


def _need(node: Node) -> Need | None:
    match node:
        case Measure() if node.metric.text == TRAIN_LOSS:
            return "train_loss"
        case Amount(standard_errors=True):
            return "replicates"
        case Counter(name="elapsed"):
            return "elapsed"
        case Counter(name="epoch"):
            return "epoch"
        case Quantity() if node.unit in SECONDS:
            return "elapsed"
        case Quantity(unit="sample"):
            return "samples"
        case Quantity(unit="epoch"):
            return "epoch" if node.value.is_integer() else "steps_per_epoch"
        case Quantity() if node.unit == PERCENT:
            return "length"
    return None

"""The engine: (rules, store, progress) -> Decision.

The loop calls it after a step, after logging and after an evaluation. It uses no clock, no file and no torch. Its whole
state is JSON, so after a resume it decides as if the training had never been interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from accmt.rules import cadence
from accmt.rules.between_evaluations import asks_for, counted, next_change, watched
from accmt.rules.decision import Decision, Due, KeptModel, Outcome, Stop, Verdict
from accmt.rules.direction import direction_of
from accmt.rules.errors import enumerated, numbered
from accmt.rules.evaluator import Scene, Value, evaluate_expression
from accmt.rules.history_functions import memories_of
from accmt.rules.nodes import Call, Everywhere, Expression, Node
from accmt.rules.progress import Progress
from accmt.rules.ranking import Candidate, Objective, RankedRule, RuleState, judge
from accmt.rules.replicated import Resamples, asks_for_errors
from accmt.rules.rule import Facts, Rules, SavingRule, StopCondition
from accmt.rules.static_checks import measures
from accmt.rules.store import MetricsStore, Observation

SCHEMA = 1
_START = Progress()
_LONGEST_REASON = 60


class RuleEngine:
    """Decides when to evaluate, save, checkpoint and stop.

    The rules must have passed `check` with the same facts. `store` holds all values observed so far.
    """

    def __init__(self, rules: Rules, facts: Facts) -> None:
        self.rules = rules
        self.facts = facts
        self.store = MetricsStore()
        self._greater = facts.greater_is_better
        self._ranked = tuple(_ranked(rule, facts, rules.writes) for rule in rules.savings)
        self._before: dict[str, RuleState] = {}
        self._patient = tuple(ranked for ranked in self._ranked if ranked.rule.patience is not None)
        self._states = {ranked.name: RuleState() for ranked in self._ranked}
        roots: list[Node] = [rule.saving for rule in rules.savings]
        self._memories = memories_of([*roots, *(stop.condition for stop in rules.stop_when)], facts)
        self._resamples = Resamples(rules, facts)
        self._remembered: dict[Call, Value] = {}
        self._cadences = {
            role: rule.cadence
            for role, rule in (("evaluate", rules.evaluate), ("checkpoint", rules.checkpoint), ("log", rules.log))
            if rule is not None
        }
        self._asked: dict[str, Progress] = {}
        self._fired: dict[str, Progress] = {}
        self._stopped: str | None = None
        stops = rules.stop_when
        self._counted = [(stop, part) for stop in stops for part in counted(stop.condition)]
        self._watched = [(stop, part) for stop in stops for part in watched(stop.condition, facts.training)]
        self.watches = bool(self._watched)
        self._now = _START
        self._schedule()

    @property
    def states(self) -> Mapping[str, RuleState]:
        """Rule name -> state of the rule."""
        return self._states

    def patience_left(self) -> dict[str, int]:
        """Return rule name -> evaluations without improvement that are left, -1 without patience."""
        return {ranked.name: self._patience_left(ranked) for ranked in self._ranked}

    def after_step(self, progress: Progress) -> Due:
        """Return whether an evaluation, a checkpoint or a log is due at this step.

        The loop need not call this or `stop_at` before `next_step` or `next_elapsed` seconds, unless an epoch ends or
        an evaluation is done: until then nothing is due, and no condition on counters and the clock can become true.
        """
        due = Due(*(self._comes_due(role, progress) for role in ("evaluate", "checkpoint", "log")))
        self._now = progress
        self._schedule()
        return due

    def stop_at(self, progress: Progress, *, is_timed: bool = True) -> Stop | None:
        """Return the stop that a condition on counters and the clock requests; without `is_timed`, on counters only."""
        scene = self._scene(progress, math.nan)
        asked = self._counted
        if not is_timed:
            asked = [(stop, part) for stop, part in asked if not asks_for(part, "elapsed")]
        return _first_holding(asked, scene)

    def after_logging(
        self, progress: Progress, train_loss: float, training: Mapping[str, float] | None = None
    ) -> Stop | None:
        """Return the stop that a condition on counters, the clock, training losses and training metrics requests.

        Args:
            progress: The counters.
            train_loss: The mean training loss since the last call.
            training: Training metric -> mean since the last call.
        """
        scene = replace(self._scene(progress, train_loss), training=training or {})
        return _first_holding([*self._counted, *self._watched], scene)

    def stay_stopped(self, stop: Stop) -> None:
        """Remember a stop between evaluations that takes effect: the loss of its interval will not be seen again."""
        self._stopped = stop.asked_by

    def after_evaluation(self, observation: Observation) -> Decision:
        """Record the results of an evaluation and return the decision.

        An evaluation before the first step decides nothing, and its values are not recorded.
        """
        progress = observation.progress
        if observation.initial:
            return Decision(progress, tuple(self._inactive(ranked) for ranked in self._ranked))
        self.store.record(self._resamples.needed(observation))
        scene = self._scene(progress, observation.train_loss)
        for call, memory in self._memories:
            memory.update(evaluate_expression(call.arguments[0], scene))  # type: ignore[arg-type]
            self._remembered[call] = memory.value
        self._resamples.update(scene)
        self._before = dict(self._states)
        verdicts = tuple(self._judge(ranked, scene) for ranked in self._ranked)
        checkpoint = self._comes_due("checkpoint", progress)
        if checkpoint or progress.elapsed >= self.next_elapsed:  # otherwise the schedule is still valid
            self._schedule()
        return Decision(progress, verdicts, checkpoint, self.standing_stop(progress))

    def judge_average(self, rule: str, observation: Observation) -> Verdict:
        """Return the verdict of a rule on the average of the models that it keeps, against the best of them.

        Functions over time and training losses in its condition have their last values. Nothing is recorded.
        """
        [ranked] = (ranked for ranked in self._ranked if ranked.name == rule)
        state, store, progress = self._states[rule], MetricsStore(), observation.progress
        kept = state.kept
        store.record(observation)
        scene = replace(self._scene(progress, self.store.train_loss), store=store)
        resamples = Resamples(self.rules, self.facts)
        resamples.update(scene)
        candidate = _candidate(ranked, scene, resamples)
        saving = replace(ranked.rule.saving, keep=None)
        best = RuleState().keeping(kept[:1], state.replicates)
        verdict, _ = judge(replace(ranked, rule=replace(ranked.rule, saving=saving)), best, candidate)
        reason, left = f"average of {len(kept)} models: {verdict.reason}", self._patience_left(ranked)
        return replace(verdict, reason=reason, patience_left=left, kept=kept)

    def undo_saving(self, decision: Decision, rule: str, why: str) -> Decision:
        """Return the last decision with a rule's saving undone, because the model could not be written.

        The rule keeps the models it kept before, so that the next candidate has to beat only existing models.
        """
        before, state = self._before[rule], self._states[rule]
        kept = before.kept
        self._states[rule] = state.keeping(kept, {**before.replicates, **state.replicates})
        verdicts = tuple(
            replace(verdict, outcome=Outcome.FAILED, reason=why, kept=kept) if verdict.rule == rule else verdict
            for verdict in decision.verdicts
        )
        return replace(decision, verdicts=verdicts)

    def keep_only(self, rule: str, kept: tuple[KeptModel, ...]) -> bool:
        """Drop the models of a rule that no longer exist, and return whether there were any.

        The next candidate has to beat only existing models; the patience count is unchanged.
        """
        state = self._states[rule]
        self._states[rule] = state.keeping(kept, state.replicates)
        return kept != state.kept

    def standing_stop(self, progress: Progress) -> Stop | None:
        """Return the stop that the current state requests: patience has run out, or a condition holds.

        Before the first evaluation only counters, the clock and a stop requested since the start are known.
        """
        for stop in self.rules.stop_when if self._stopped is not None else ():
            if str(stop.condition) == self._stopped:
                return _holding(stop)
        if self.store.is_empty:
            return self.stop_at(progress) if progress.step else None
        if self._patient and all(self._patience_left(ranked) == 0 for ranked in self._patient):
            return _out_of_patience(self._patient)
        scene = self._scene(progress, self.store.train_loss)
        return _first_holding([(stop, stop.condition) for stop in self.rules.stop_when], scene)

    def state(self) -> dict[str, Any]:
        """Return the whole state as JSON."""
        return {
            "schema": SCHEMA,
            "store": self.store.to_json(),
            "datasets": list(self.facts.datasets),
            "rules": {r.name: {**self._identity(r), **self._states[r.name].to_json()} for r in self._ranked},
            "functions": {
                str(call): {
                    "on": _datasets_of(call, self.facts),
                    "memory": memory.to_json(),
                    **self._resamples.to_json(call),
                }
                for call, memory in self._memories
            },
            "stopped": self._stopped,
            "now": self._now.to_json(),
            "asked": {role: progress.to_json() for role, progress in self._asked.items()},
            "fired": {role: progress.to_json() for role, progress in self._fired.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> list[str]:
        """Restore a saved state and return one line for each change in rules, patience or datasets since.

        An unchanged rule keeps its state, a new or changed one starts from scratch, a removed one is dropped. A rule
        that runs over other datasets than before counts as changed.

        Raises:
            ValueError: The state was written in another format.
        """
        if state.get("schema") != SCHEMA:
            raise ValueError(f"the state of the rules has the format {state.get('schema')!r}, not {SCHEMA}")
        before, now = state["datasets"], self.facts.datasets
        notes = [f"the dataset '{name}' is gone: its values are dropped" for name in before if name not in now]
        notes += [f"the dataset '{name}' is new" for name in now if name not in before]
        reported = {name: metric.datasets for name, metric in self.facts.metrics.items()}
        self.store = MetricsStore.from_json(state["store"]).restricted(reported)
        self.store.training = {name: v for name, v in self.store.training.items() if name in self.facts.training}
        saved = dict(state["rules"])
        for ranked in self._ranked:
            notes += self._restore_rule(ranked, saved.pop(ranked.name, None))
        notes += [f"the rule '{name}' is gone: what it remembered is dropped" for name in saved]
        notes += self._restore_functions(state["functions"])
        asked = {str(stop.condition) for stop in self.rules.stop_when}
        self._stopped = state["stopped"] if state["stopped"] in asked else None
        self._asked = {role: Progress.from_json(progress) for role, progress in state["asked"].items()}
        self._fired = {role: Progress.from_json(progress) for role, progress in state["fired"].items()}
        self._now = Progress.from_json(state["now"]) if "now" in state else _START
        self._schedule()
        return notes

    def _restore_functions(self, saved: Mapping[str, Any]) -> list[str]:
        """Restore what functions over time remember and return which of them start fresh."""
        notes, restored = [], {}
        for call, memory in self._memories:
            entry = saved.get(str(call))
            if entry is None:
                continue
            if entry["on"] != _datasets_of(call, self.facts):
                notes.append(f"'{call}' runs over other datasets: it starts fresh")
            elif not self._resamples.can_restore(call, entry):
                notes.append(f"'{call}' has no replicates of former evaluations: it starts fresh")
            else:
                memory.restore(entry["memory"])
                self._remembered[call] = memory.value
                restored[call] = entry
        self._resamples.restore(restored)
        return notes

    def _restore_rule(self, ranked: RankedRule, entry: Mapping[str, Any] | None) -> list[str]:
        """Restore the state of a rule and return what has changed."""
        self._states[ranked.name] = RuleState()
        if entry is None:
            return [f"the rule '{ranked.name}' is new: it starts fresh"]
        identity, patience = self._identity(ranked), ranked.rule.patience
        changed = [key for key in identity if key != "patience" and entry.get(key) != identity[key]]
        if changed:
            hows = {"on": "runs over other datasets", "resamples": "has another number of replicates"}
            how = hows.get(changed[0], "has changed") if len(changed) == 1 else "has changed"
            return [f"the rule '{ranked.name}' {how}: it starts fresh"]
        self._states[ranked.name] = state = RuleState.from_json(entry)
        best = () if state.best_seen is None else (state.best_seen,)
        counts = {len(each) for each in (*(kept.values for kept in state.kept), *best, *state.replicates.values())}
        if counts - {len(ranked.objectives)}:
            raise ValueError(
                f"what '{ranked.name}' remembers are not the values of {len(ranked.objectives)} objectives"
            )
        if entry["patience"] == patience:
            return []
        former, new = ("none" if value is None else value for value in (entry["patience"], patience))
        return [f"the patience of '{ranked.name}' was {former} and is {new}: the evaluations without improvement count"]

    def _identity(self, ranked: RankedRule) -> dict[str, Any]:
        """Return what identifies a rule after a resume: its text, limits, datasets, direction and resamples."""
        return {
            **ranked.rule.identity,
            "greater": [objective.greater_is_better for objective in ranked.objectives],
            "on": _datasets_of(ranked.rule.saving, self.facts),
            "patience": ranked.rule.patience,
            **({"resamples": self.facts.replicates} if asks_for_errors(ranked.rule) else {}),
        }

    def _scene(self, progress: Progress, train_loss: float) -> Scene:
        return Scene(
            self.store, progress, self.facts.length, train_loss, self._remembered, self._greater, self.store.training
        )

    def _judge(self, ranked: RankedRule, scene: Scene) -> Verdict:
        rule = ranked.rule
        after = rule.saving.after
        waiting = after is not None and not cadence.has_passed(after, scene.progress, self.facts.length)
        candidate = _candidate(ranked, scene, self._resamples)
        if waiting:
            candidate = replace(candidate, blocked=f"blocked by after {after}", waiting=True)
        verdict, self._states[ranked.name] = judge(ranked, self._states[ranked.name], candidate)
        return verdict

    def _inactive(self, ranked: RankedRule) -> Verdict:
        reason, kept = "the evaluation before the first step decides nothing", self._states[ranked.name].kept
        return Verdict(ranked.name, (), None, Outcome.INACTIVE, reason, self._patience_left(ranked), kept)

    def _patience_left(self, ranked: RankedRule) -> int:
        return self._states[ranked.name].patience_left(ranked.rule.patience)

    def _comes_due(self, role: str, progress: Progress) -> bool:
        if role not in self._cadences:
            self._asked[role] = self._fired[role] = progress  # a cadence that is added at a resume counts from here
            return False
        asked, fired = self._asked.get(role, _START), self._fired.get(role, _START)
        self._asked[role] = progress
        due = cadence.is_due(self._cadences[role], asked, progress, fired, self.facts.length)
        if due:
            self._fired[role] = progress
        return due

    def _schedule(self) -> None:
        """Compute when something can be due next, or a condition on counters and the clock can become true."""
        steps = [1] if self._counted and not self._now.step else []
        self.next_elapsed = math.inf
        for _, part in self._counted:
            at, moment = next_change(part, self._now, self.facts.length)
            steps += [] if at is None else [at]
            self.next_elapsed = min(self.next_elapsed, moment)
        for role, every in self._cadences.items():
            asked, fired = self._asked.get(role, _START), self._fired.get(role, _START)
            step = cadence.next_step(every, asked, fired, self.facts.length)
            if step is not None:
                steps.append(step)
            self.next_elapsed = min(self.next_elapsed, cadence.next_elapsed(every, asked, fired))
        self.next_step: int | None = min(steps, default=None)


def _first_holding(asked: Iterable[tuple[StopCondition, Expression]], scene: Scene) -> Stop | None:
    """Return the stop for the first part of a condition that holds."""
    return next((_holding(stop) for stop, part in asked if evaluate_expression(part, scene)), None)


def _holding(stop: StopCondition) -> Stop:
    return Stop(str(stop.condition), f"the condition '{stop.condition}' holds")


def _ranked(rule: SavingRule, facts: Facts, writes: bool) -> RankedRule:
    def objective(expression: Expression) -> Objective:
        greater = direction_of(expression, facts)
        if greater is None:
            raise ValueError(f"'{expression}' has no direction: check the rules before they run")
        return Objective(expression, greater, str(expression))

    groups = rule.saving.ranking.groups
    return RankedRule(rule, rule.name, tuple(tuple(map(objective, group)) for group in groups), writes)


def _candidate(ranked: RankedRule, scene: Scene, resamples: Resamples) -> Candidate:
    values = tuple(float(evaluate_expression(objective.expression, scene)) for objective in ranked.objectives)
    asked = ranked.objectives if asks_for_errors(ranked.rule) else ()
    replicates = tuple(resamples.values(objective.expression) for objective in asked)
    progress, blocked = scene.progress, _blocked(ranked.rule, values, scene)
    return Candidate(values, progress.evaluation, progress.step, blocked, replicates=replicates)


def _blocked(rule: SavingRule, values: tuple[float, ...], scene: Scene) -> str | None:
    below, above, condition = rule.saving_below, rule.saving_above, rule.saving.condition
    if below is not None and not all(value < below for value in values):
        return f"blocked by saving_below {below:g}"
    if above is not None and not all(value > above for value in values):
        return f"blocked by saving_above {above:g}"
    if condition is not None and not evaluate_expression(condition, scene):
        text = str(condition)
        return f"blocked by if {text}" if len(text) <= _LONGEST_REASON else "blocked by its condition"
    return None


def _datasets_of(node: Node, facts: Facts) -> dict[str, list[str]]:
    """Return metric -> its datasets, for metrics written without datasets."""
    everywhere = {
        measure.metric.text
        for measure in measures(node)
        if not measure.datasets or isinstance(measure.datasets[0], Everywhere)
    }
    return {name: sorted(facts.metrics[name].datasets) for name in sorted(everywhere) if name in facts.metrics}


def _out_of_patience(rules: tuple[RankedRule, ...]) -> Stop:
    by_patience: dict[int | None, list[str]] = {}
    for ranked in rules:
        name = ranked.name if ranked.rule.given_name is None else f"'{ranked.name}'"
        by_patience.setdefault(ranked.rule.patience, []).append(name)
    words = [
        f"{enumerated(names, 'and')} {'has' if len(names) == 1 else 'have'} not improved for "
        + numbered(patience, "evaluation")
        for patience, names in by_patience.items()
    ]
    return Stop(", ".join(ranked.name for ranked in rules), "; ".join(words))

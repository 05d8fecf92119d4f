"""Rules in a loop by hand: what is due after a step, which rules save after an evaluation, and when to stop.

    with Rules("model", ["best_accuracy@dev"], metrics={"accuracy": "max"}, datasets=["dev"],
               evaluate_every="epoch", patience=3) as rules:
        for each step:
            train
            due = rules.step(epoch=epoch + done / batches, train_loss=loss)
            if due.evaluate:
                decision = rules.evaluated({"dev": {"accuracy": ...}})
                rules.save(decision, state_dict_of(model))

Trainers of others wrap it. The order of calls is: `start` (optional), `load_state_dict` (to resume), then `step` after
each optimizer step, `evaluated` after an evaluation, and `save` with each decision that saves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from accmt.checkpoint.model_folders import ModelFolders
from accmt.checkpoint.publish import end_threads
from accmt.checkpoint.saved_models import SavedModel
from accmt.config.errors import ConfigError, Problem, did_you_mean, raise_problems
from accmt.config.kinds import COUNT
from accmt.integrations import processes
from accmt.integrations.arguments import read_declaration
from accmt.integrations.counters import Counters, CountersState
from accmt.integrations.journals import Journals
from accmt.integrations.timing import Timing
from accmt.integrations.values import Replicates, checked_values
from accmt.integrations.writers import pretrained, state_dict_of, write_checked
from accmt.notices import warn
from accmt.rules import Decision, Length, Observation, RuleEngine, SavingRule, Stop
from accmt.rules.codec import Jsonable
from accmt.rules.errors import listed
from accmt.tracebacks import concise

__all__ = ["Rules", "StepDue", "pretrained", "state_dict_of"]

Write = Callable[[Path], object]


@dataclass(frozen=True, slots=True)
class StepDue:
    """What is due after a step. The order is: evaluate, save, checkpoint, stop.

    Attributes:
        evaluate: Call `evaluated` with new values.
        checkpoint: Write a checkpoint, with the state of the rules in it.
        stop: Why to stop, None to continue.
    """

    evaluate: bool = False
    checkpoint: bool = False
    stop: Stop | None = None


_NOTHING = StepDue()


@dataclass(frozen=True, slots=True, eq=False)
class _State(Jsonable):
    schema: Literal[1]
    counters: CountersState
    total_steps: int | None
    steps_per_epoch: int | None
    engine: Mapping[str, Any]
    records: Mapping[str, Any]
    failed: tuple[str, ...]


class Rules:
    """The rules of a loop by hand.

    Args:
        model_path: The folder for the journals and for the models that rules save.
        save: Saving rules, as texts or `accmt.rules.SavingRule`; by default `best_valid_loss`.
        stop_when: Conditions that stop the training.
        checkpoint_every: How often a checkpoint is due, such as "500 steps or 10 minutes"; None for never.
        evaluate_every: How often an evaluation is due, and at the end or at a stop; None if the loop knows it.
        patience: Evaluations without improvement after which to stop: of all rules, or by the name of a rule.
        metrics: Metric -> "max" or "min", or ("max", ["dev"]) if not all datasets have it. `valid_loss` is known.
        datasets: The names of the validation datasets, [] if there are none; None if `start` will be given them.
        held_out: Datasets for reporting only: no rule can use them.
        config: A YAML file with the section `rules`; arguments replace its entries.
        replicates: The number of resamples from which rules with `by 2 se` estimate standard errors; by default 200.

    Attributes:
        stop: Why to stop, None as long as there is no reason.
        declared: What was given: metrics, datasets, rules.
        counters: The step, epoch and evaluation, and the step of the last evaluation.
        engine: The engine, None before the rules are checked with the datasets.

    Raises:
        ConfigError, RuleError: With every mistake.
    """

    @concise
    def __init__(  # noqa: PLR0913  (the arguments are the interface)
        self,
        model_path: str | Path,
        save: str | SavingRule | Iterable[str | SavingRule] | None = None,
        *,
        stop_when: str | Iterable[str] | None = None,
        checkpoint_every: str | None = None,
        evaluate_every: str | None = None,
        patience: int | Mapping[str, int] | None = None,
        metrics: Mapping[str, Any] | None = None,
        datasets: Iterable[str] | None = None,
        held_out: Iterable[str] | None = None,
        config: str | Path | None = None,
        replicates: int | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name != "self"}
        self.declared = read_declaration(given)
        self.model_path = self.declared.model_path
        self.stop: Stop | None = None
        self.engine: RuleEngine | None = None
        self._length = Length()
        self.counters = Counters()
        self._journals = Journals(self.model_path)
        self._draws = Replicates(self.declared.replicates)
        self._folders = ModelFolders(self.model_path)
        self._pending: Decision | None = None
        self._failed: set[str] = set()
        self._timing = Timing(self.counters)

    @concise
    def start(
        self,
        *,
        datasets: Iterable[str] | None = None,
        held_out: Iterable[str] | None = None,
        total_steps: int | None = None,
        steps_per_epoch: int | None = None,
    ) -> None:
        """Add what is known only when the training starts, and check all rules. Nothing is written yet.

        Args:
            datasets, held_out: As in the constructor; None leaves what was given there.
            total_steps: The optimizer steps of the whole training, if known.
            steps_per_epoch: The optimizer steps of an epoch, if known; `step` counts epochs by it.

        Raises:
            ConfigError, RuleError: With every mistake.
            RuntimeError: The training has begun.
        """
        self._require(not self._journals.has_begun, "start", "the training has begun: call it before the first step")
        self.declared = self.declared.on(datasets, held_out)
        self.engine = None
        self._learn(total_steps, steps_per_epoch)

    @concise
    def step(
        self,
        *,
        step: int | None = None,
        epoch: float | None = None,
        samples: int | None = None,
        total_steps: int | None = None,
        train_loss: Any = None,
    ) -> StepDue:
        """Count an optimizer step, and return what is due. Call it on all processes.

        Args:
            step: The optimizer steps done; by default one more than before.
            epoch: The completed epochs: 2 at the end of the second, or 2.5 in the middle of the third.
            samples: The training samples seen, over all processes.
            total_steps: The optimizer steps of the whole training, if known.
            train_loss: The loss of the step, a number or a tensor, which is not read before it is needed.

        Raises:
            ValueError, TypeError: A value is not possible.
            RuntimeError: A decision that saves was not passed to `save`.
            ConfigError, RuleError: At the first step: the rules do not fit the training.
        """
        counters = self.counters
        if self.engine is None:
            self._learn(total_steps, None)
        seen = counters.advance(step, epoch, samples, self._length.steps_per_epoch)
        if train_loss is not None:
            counters.add_loss(train_loss, seen)
        if not self._timing.is_due() and (total_steps is None or total_steps == self._length.total_steps):
            return _NOTHING
        return self._settle(total_steps)

    @concise
    def evaluated(
        self,
        values: Mapping[str, Mapping[str, Any]],
        *,
        step: int | None = None,
        epoch: float | None = None,
        samples: int | None = None,
    ) -> Decision:
        """Record an evaluation, and return which rules save, why, and whether to stop. Call it on all processes.

        The values of the main process count. Before the first step, nothing is decided. `decision.saved` lists the
        rules that save; pass the decision to `save`.

        Args:
            values: Dataset -> metric -> value, a number or a tensor. Or a score for each sample of the dataset, always
                in the same order, as rules with `by 2 se` need: a list, an array or a tensor, whose mean is the value.
                Values of held-out datasets are recorded only.
            step, epoch, samples: As in `step`, for loops that do not call it at each step.

        Raises:
            ValueError, TypeError: A dataset, metric or number is missing or not declared.
            RuntimeError: There was an evaluation at this step, or its decision was not passed to `save`.
        """
        counters = self.counters
        if step is not None and step != counters.step:
            counters.advance(step, epoch, samples, self._length.steps_per_epoch)
        engine = self._begun()
        is_new = counters.evaluated != counters.step
        self._require(is_new, "evaluated", f"there was an evaluation at step {counters.step} already")
        observation, held_out = processes.from_main(partial(self._observed, values))
        if observation.progress.step != counters.step:
            there = observation.progress.step
            raise RuntimeError(f"this process is at step {counters.step}, and the main process at step {there}")
        counters.evaluated, counters.evaluation = counters.step, observation.progress.evaluation
        counters.losses.clear()
        self._journals.observe(observation, held_out)
        decision = engine.after_evaluation(observation)
        self.stop = self.stop or decision.stop
        if decision.saved:
            self._pending = decision
        else:
            self._journals.decide(decision)
        self._schedule(engine)
        return decision

    @concise
    def save(self, decision: Decision, write: Write) -> Decision:
        """Publish the models that a decision saves, and return what became of it. Call it on all processes.

        Args:
            decision: The decision of the last evaluation; nothing is done if it saves nothing.
            write: Called once for each rule that saves, on the main process, with an empty folder for its files, such
                as `state_dict_of(model)`. If it raises, the former model stays, and the rule forgets that it saved; the
                first time this is a warning.

        Returns:
            The decision, in which the outcome of a rule whose model was not written is "failed".

        Raises:
            RuntimeError: It is not the last decision; or `write` failed for a rule twice in a row.
        """
        if not decision.saved:
            return decision
        self._require(decision is self._pending, "save", "it needs the decision that the last evaluated() returned")
        engine, step = self._begun(saves=True), decision.progress.step
        errors: dict[str, Exception] = {}  # on the main process
        failures = processes.from_main(partial(self._written, decision, write, errors)) if processes.acts() else {}
        self._pending = None
        for verdict in decision.saved:
            name = verdict.rule
            if (why := failures.get(name)) is None:
                self._failed.discard(name)
                continue
            if name in self._failed:
                raise RuntimeError(f"{name} could not be saved, twice in a row: {why}") from errors.get(name)
            self._failed.add(name)
            warn(f"{name} could not be saved at step {step}: {why}")
            decision = engine.undo_saving(decision, name, f"could not be saved: {why}")
        self._journals.decide(decision)
        return decision

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state as JSON, for a checkpoint. All journals are on the disk then.

        Raises:
            RuntimeError: A decision that saves was not passed to `save`.
        """
        engine = self._begun()
        state = _State(
            1,
            self.counters.state(),
            self._length.total_steps,
            self._length.steps_per_epoch,
            engine.state(),
            self._journals.state_dict(),
            tuple(sorted(self._failed)),
        )
        return state.to_json()

    @concise
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state, before the first step. Call it on all processes.

        The journals are cut to the position of the state. What has changed since is a warning, one for each change.

        Raises:
            ValueError: It is not a state of `Rules`.
            ConfigError, RuleError: The rules do not fit the training.
            RuntimeError: The training has begun.
        """
        is_new = not self._journals.has_begun and self.counters.step == 0
        self._require(is_new, "load_state_dict", "the training has begun: call it before the first step")
        loaded = _State.from_json(state)
        known = self._length
        lengths = known.total_steps or loaded.total_steps, known.steps_per_epoch or loaded.steps_per_epoch
        engine, counters = self._learn(*lengths), self.counters
        notes = engine.restore(loaded.engine)
        counters.restore(loaded.counters)
        self._failed = set(loaded.failed)
        self._journals.resume(engine, loaded.records, counters.step, notes)
        if processes.acts():
            notes += self._folders.settle(engine, counters.evaluation, counters.step, processes.from_main)
        self.stop = engine.standing_stop(counters.progress(counters.clock.elapsed())) if counters.step else None
        self._schedule(engine)
        for note in notes:
            warn(note)

    def best(self, rule: str) -> SavedModel | None:
        """Return the best model that a rule of this name has saved, None if there is none.

        Raises:
            ValueError: No rule has this name.
        """
        rules = self.declared.checked(None)[0] if self.engine is None else self.engine.rules
        named = {one.name: one for one in rules.savings}
        if rule not in named:
            raise ValueError(
                f"there is no rule {rule!r}{did_you_mean(rule, named)} The rules are: {listed(list(named))}"
            )
        return self._folders.best(named[rule])

    def close(self) -> None:
        """Finish the journals and unlock the folder; the end of a `with` block calls it."""
        if self._journals.is_open and self._pending is not None:
            names = listed([verdict.rule for verdict in self._pending.saved])
            warn(f"{names} saved nothing at step {self.counters.step}: rules.save(decision, write) was not called")
        if self._journals.is_open and self.counters.evaluation == 0:
            warn("this training ended without an evaluation: no rule has decided anything")
        self._end("FINISHED")

    def end_interrupted(self) -> None:
        """Unlock the folder if an exception has ended another training in it, of this process.

        For trainers that run one training at a time, and do not tell that one has failed.
        """
        self._journals.end_interrupted()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._end("FAILED" if isinstance(error, Exception) else "KILLED", f"{type(error).__name__}: {error}")

    def _end(self, event: str, text: str = "") -> None:
        self._journals.end(self.counters.step, event, text)
        end_threads()

    def _require(self, is_met: bool, call: str, why: str) -> None:
        if not is_met:
            raise RuntimeError(f"rules.{call}: {why}")

    def _learn(self, total_steps: int | None, steps_per_epoch: int | None) -> RuleEngine:
        """Check all rules for a training of this length, and make their engine; None leaves what is known."""
        lengths = {"total_steps": total_steps, "steps_per_epoch": steps_per_epoch}
        raise_problems((p for name, n in lengths.items() for p in COUNT.or_none().problems(name, n)), "Rules")
        length = Length(total_steps or self._length.total_steps, steps_per_epoch or self._length.steps_per_epoch)
        if self.engine is not None and length == self._length:
            return self.engine
        if self.declared.datasets is None:
            text = "are not known: give the names of the validation datasets to Rules(...) or start(...); [] for none"
            raise ConfigError([Problem("datasets", text)], "Rules")
        rules, facts, warnings = self.declared.checked(length)
        engine = RuleEngine(rules, facts)
        if self.engine is not None:
            engine.restore(self.engine.state())
        self.engine, self._length = engine, length
        self._timing.follow(engine)
        if self._journals.has_begun:
            self._journals.describe(engine)
        for warning in warnings:
            warn(str(warning))
        return engine

    def _begun(self, *, saves: bool = False) -> RuleEngine:
        """Return the engine of a training that has begun."""
        if self._pending is not None and not saves:
            names = listed([verdict.rule for verdict in self._pending.saved])
            raise RuntimeError(f"{names} saves: call rules.save(decision, write) with the decision of the evaluation")
        engine = self.engine or self._learn(None, None)
        if not self._journals.has_begun:
            self._journals.begin(engine)
        return engine

    def _settle(self, total_steps: int | None) -> StepDue:
        """Ask the engine what is due at this step."""
        self._learn(total_steps, None)
        engine, counters = self._begun(), self.counters
        elapsed, loss = self._timing.look(engine)
        progress = counters.progress(elapsed)
        due = engine.after_step(progress)
        if self.stop is None:
            self.stop = engine.stop_at(progress) if loss is None else engine.after_logging(progress, loss)
            if self.stop is not None:
                engine.stay_stopped(self.stop)
                self._journals.decide(Decision(progress, stop=self.stop))
        self._schedule(engine)
        ends = self.stop is not None or counters.step == self._length.total_steps
        evaluate = due.evaluate or (ends and engine.rules.evaluate is not None)
        return StepDue(evaluate, due.checkpoint or (ends and engine.rules.checkpoint is not None), self.stop)

    def _schedule(self, engine: RuleEngine) -> None:
        is_waiting = self._pending is not None or self.stop is not None
        self._timing.update(engine, self._length.total_steps, is_waiting=is_waiting)

    def _observed(self, values: Mapping[str, Mapping[str, Any]]) -> tuple[Observation, dict[str, float]]:
        """Return an observation, and the values of held-out datasets as `metric@dataset`."""
        assert self.engine is not None
        counters = self.counters
        found, replicates = checked_values(values, self.engine, self.declared, self._draws)
        initial = counters.step == 0
        progress = counters.progress(counters.clock.elapsed())
        progress = replace(progress, evaluation=progress.evaluation + (not initial))
        observed = {key: found[key] for key in self.engine.facts.datasets}
        held_out = {f"{name}@{key}": v for key in found if key not in observed for name, v in found[key].items()}
        return Observation(progress, observed, counters.losses.mean, initial, replicates=replicates), held_out

    def _written(self, decision: Decision, write: Write, errors: dict[str, Exception]) -> dict[str, str]:
        """Write the models that a decision saves; return rule -> why it was not saved."""
        assert self.engine is not None
        rules = {rule.name: rule for rule in self.engine.rules.savings}
        for verdict in decision.saved:
            try:
                files = partial(write_checked, write)
                self._folders.publish(rules[verdict.rule], verdict, decision.progress.epoch, files)
            except Exception as error:
                errors[verdict.rule] = error
        return {name: f"{type(error).__name__}: {error}" for name, error in errors.items()}

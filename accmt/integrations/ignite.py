"""Rules in the engines of Ignite.

    rules = Rules("model", "best_accuracy@dev", patience=3, metrics={"accuracy": "max"})
    rules.attach(trainer, {"dev": dev_evaluator, "ood": ood_evaluator}, model=net)
    trainer.run(train, max_epochs=20)

Ignite trains and evaluates. The rules choose the models that are saved, say when a checkpoint is due, and stop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import ignite.distributed as idist
from ignite.engine import Engine, Events
from torch import nn

from accmt._compat import handlers_of
from accmt.checkpoint.saved_models import SavedModel
from accmt.config.errors import Problem, must_be, raise_problems
from accmt.integrations import loop, processes
from accmt.integrations.reported import Names
from accmt.integrations.writers import state_dict_of
from accmt.notices import warn
from accmt.rules import SavingRule, Stop
from accmt.rules.errors import listed
from accmt.rules.store import ONLY_DATASET, TRAIN_LOSS
from accmt.tracebacks import concise

_HOW = "attach a metric of that name to its evaluator"


class Rules:
    """Decides which models are saved, when to evaluate, when to write a checkpoint, and when to stop.

    A saved model consists of the weights of the model, as `accmt.load_best` reads them. With `Checkpoint(to_save=
    {"trainer": trainer, "rules": rules, ...})` the rules are resumed like the trainer.

    Args:
        model_path, save, stop_when, patience, metrics, held_out, config: As in `accmt.integrations.loop.Rules`. The
            datasets are those of the evaluators.
        evaluate_every: How often the evaluators run, if `attach` is given loaders; by default each epoch.
        checkpoint_every: How often the `checkpoint` of `attach` is called.
        names: Metrics that Ignite names differently, as its name -> name in `metrics`. `loss` is `valid_loss`.

    Raises:
        ConfigError, RuleError: With every mistake.
    """

    @concise
    def __init__(
        self,
        model_path: str | Path,
        save: str | SavingRule | Iterable[str | SavingRule] | None = None,
        *,
        names: Mapping[str, str] | None = None,
        **rules: Any,
    ) -> None:
        self._given = {"model_path": model_path, "save": save, **rules}
        self._core = loop.Rules(**self._given)
        self._names = Names(names, self._core.declared, numbers_only=False)
        self._evaluators: dict[str, Engine] = {}
        self._restored: Mapping[str, Any] = {}
        self._values: dict[str, dict[str, Any]] = {}
        self._is_training = self._has_trained = self._is_checkpoint_due = False

    @concise
    def attach(
        self,
        trainer: Engine,
        evaluators: Mapping[str, Engine] | Engine | None = None,
        *,
        model: nn.Module,
        loaders: Mapping[str, Iterable[Any]] | Iterable[Any] | None = None,
        checkpoint: Callable[[Engine], object] | None = None,
        output_transform: Callable[[Any], Any] | None = None,
    ) -> Self:
        """Follow a trainer and its evaluators. Call it once, before the trainer runs.

        Args:
            trainer: The engine that trains; an iteration is a step.
            evaluators: Dataset -> the engine that evaluates it, one engine if there is one dataset, None if none.
            model: What is saved, without its wrappers.
            loaders: Dataset -> its data. With it, the evaluators run when `evaluate_every` is due; without it, your
                handlers run all of them at the same iteration.
            checkpoint: Ignite's `Checkpoint`, or another function of the trainer, called at `checkpoint_every`.
            output_transform: Gives the loss of a step by `trainer.state.output`, if that is not the loss.

        Raises:
            ConfigError, RuleError: The arguments contradict each other, or a rule names an unknown dataset.
        """
        self._trainer, self._model, self._checkpoint, self._loss_of = trainer, model, checkpoint, output_transform
        self._evaluators = _by_name(evaluators)
        self._loaders = None if loaders is None else _by_name(loaders)
        self._check()
        if self._loaders is not None and self._core.declared.rules.evaluate is None:
            self._given["evaluate_every"] = "epoch"
            self._core = loop.Rules(**self._given)
        self._core.start(datasets=self._evaluators)
        trainer.add_event_handler(Events.STARTED, self._start)
        trainer.add_event_handler(Events.COMPLETED, self._end)
        trainer.add_event_handler(Events.EXCEPTION_RAISED, self._fail)
        for name, evaluator in self._evaluators.items() if self._loaders is None else ():
            evaluator.add_event_handler(Events.COMPLETED, self._collect, name)
        return self

    @property
    def stop(self) -> Stop | None:
        """Why to stop, None as long as there is no reason."""
        return self._core.stop

    def best(self, rule: str) -> SavedModel | None:
        """Return the best model that a rule has saved; None if it has saved none."""
        return self._core.best(rule)

    def state_dict(self) -> dict[str, Any]:
        """Return what Ignite's Checkpoint writes."""
        if not self._is_training:
            return dict(self._restored)
        self._count()
        return self._core.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Keep the state of a checkpoint until the training starts."""
        self._restored = state_dict

    @concise
    def _start(self) -> None:
        """Check the rules for the length of this training, and resume them if it is resumed."""
        state = self._trainer.state
        if state.epoch_length is None:
            raise_problems([Problem("epoch_length", "is not known: the data have no length")], "trainer.run(...)")
        if self._has_trained:
            self._core = loop.Rules(**self._given)
        ends = (state.max_epochs or 0) * state.epoch_length, getattr(state, "max_iters", None)
        total = min((end for end in ends if end), default=None)
        self._core.start(datasets=self._evaluators, total_steps=total, steps_per_epoch=state.epoch_length)
        if state.iteration and self._restored:
            self._core.load_state_dict(self._restored)
        elif state.iteration:
            text = "without a state of the rules: they start from scratch"
            warn(f"the trainer continues from iteration {state.iteration} {text}")
        elif self._restored and not self._has_trained:
            warn("the state of the rules is not used, because the trainer starts from scratch")
        self._is_training = self._has_trained = True
        # Added now, they come after the handlers of the user, which may evaluate.
        self._handlers = [
            self._trainer.add_event_handler(Events.ITERATION_COMPLETED, self._after_iteration),
            self._trainer.add_event_handler(Events.EPOCH_COMPLETED, self._write_checkpoint),
        ]
        self._obey()

    @concise
    def _after_iteration(self) -> None:
        is_due = self._count()
        if self._loaders is not None and is_due:
            for name, evaluator in self._evaluators.items():
                evaluator.run(self._loaders[name])
                self._collect(evaluator, name)
        elif not self._evaluators and self._is_last():
            self._decide()
        if not self._is_last():  # otherwise after the handlers at the end of the epoch, which may evaluate
            self._write_checkpoint()
        self._obey()

    @concise
    def _collect(self, evaluator: Engine, name: str) -> None:
        """Take the metrics of an evaluator, and decide if they are the last ones."""
        if not self._is_training:
            return
        self._count()
        self._values[name] = self._names.values(name, evaluator.state.metrics, _HOW)
        if len(self._values) == len(self._evaluators) and self._core.counters.step != self._core.counters.evaluated:
            self._decide()
            self._obey()

    def _count(self) -> bool:
        """Count the iteration unless it is counted, and return whether an evaluation is due."""
        state, core = self._trainer.state, self._core
        if state.iteration == core.counters.step:
            return False
        if self._values:
            missing = listed([name for name in self._evaluators if name not in self._values])
            raise RuntimeError(
                f"the evaluation at iteration {core.counters.step} has no values of {missing}: run its evaluator there "
                f"too, or leave it out of attach(evaluators=)"
            )
        loss = self._loss(state.output)
        due = core.step(step=state.iteration, epoch=state.iteration / state.epoch_length, train_loss=loss)
        self._is_checkpoint_due |= due.checkpoint
        return due.evaluate

    def _loss(self, output: Any) -> Any:
        if self._loss_of is not None:
            return self._loss_of(output)
        if isinstance(output, float) or getattr(output, "ndim", None) == 0:
            return output
        if self._core.counters.step == 0 and _needs_loss(self._core):
            found = must_be("a number: give output_transform= to attach", output)
            raise TypeError(f"a rule uses train_loss, so trainer.state.output {found}")
        return None

    def _decide(self) -> None:
        values, self._values = self._values, {}
        decision = self._core.evaluated(values)
        self._core.save(decision, state_dict_of(self._model))
        self._is_checkpoint_due |= decision.checkpoint or decision.stop is not None

    def _obey(self) -> None:
        if self._core.stop is not None:
            self._trainer.terminate()

    @concise
    def _write_checkpoint(self) -> None:
        is_due, self._is_checkpoint_due = self._is_checkpoint_due, False
        if is_due and self._checkpoint is not None:
            self._checkpoint(self._trainer)

    def _is_last(self) -> bool:
        return bool(self._trainer.state.iteration % self._trainer.state.epoch_length == 0)

    @concise
    def _end(self) -> None:
        """Finish the journals and unlock the folder."""
        if self._is_training:
            self._write_checkpoint()
            self._restored = self.state_dict()
            self._leave()
            self._core.close()

    def _fail(self, error: BaseException) -> None:
        """Record that the training failed, and unlock the folder."""
        if self._is_training:
            self._leave()
            self._core.__exit__(type(error), error, error.__traceback__)
        if handlers_of(self._trainer, Events.EXCEPTION_RAISED) == 1:
            raise error  # as Ignite does without a handler

    def _leave(self) -> None:
        self._is_training, self._values = False, {}
        for handler in self._handlers:
            handler.remove()

    def _check(self) -> None:
        """Raise an error for arguments that contradict each other."""
        rules, problems = self._core.declared.rules, []
        if (rules.checkpoint is None) != (self._checkpoint is None):
            problems.append(Problem("checkpoint", "needs Rules(checkpoint_every=), and that needs attach(checkpoint=)"))
        if rules.evaluate is not None and self._loaders is None:
            problems.append(Problem("evaluate_every", "needs attach(loaders=), to run the evaluators"))
        if self._loaders is not None and set(self._loaders) != set(self._evaluators):
            text = f"are for {listed([*self._loaders])}, and evaluators for {listed([*self._evaluators]) or 'none'}"
            problems.append(Problem("loaders", text))
        if self._loaders is None and len({id(one) for one in self._evaluators.values()}) < len(self._evaluators):
            problems.append(Problem("evaluators", "are one engine for several datasets, which needs loaders="))
        if unknown := [name for name in self._core.declared.held_out if name not in self._evaluators]:
            problems.append(Problem("held_out", f"{unknown[0]!r} is not among evaluators="))
        if idist.get_world_size() != processes.count():
            problems.append(Problem("backend", f"{idist.backend()} is not one of torch.distributed, which rules need"))
        raise_problems(problems, "attach(...)")


def _by_name(given: Any) -> dict[str, Any]:
    return {} if given is None else dict(given) if isinstance(given, Mapping) else {ONLY_DATASET: given}


def _needs_loss(core: loop.Rules) -> bool:
    assert core.engine is not None
    rules = core.engine.rules
    texts = [rule.text for rule in rules.savings] + [stop.text for stop in rules.stop_when]
    return any(TRAIN_LOSS in text for text in texts)

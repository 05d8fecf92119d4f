"""Logging, and the handling of an evaluation: record it, ask the engine, save what it decides."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from accmt.distributed.collective import Failed, agreed, from_each, on_main
from accmt.distributed.strategy import whole_weights
from accmt.loop.evaluate import Results, evaluate
from accmt.loop.out_of_memory import clean_caches
from accmt.loop.run import Run
from accmt.loop.utilization import utilization
from accmt.notices import warn
from accmt.rules import Decision, Observation, Outcome, Progress, Stop
from accmt.rules.store import TRAIN_LOSS, VALID_LOSS, Values


def log(run: Run, progress: Progress) -> None:
    """Log the mean training loss of the logging interval and the other monitored values."""
    loss = run.stepper.losses.since_log()
    _warn_of(loss, run, progress)
    run.display.logged(run.moment(), loss)
    run.records.steps.add_values(progress.step, _measured(run, loss), run.position.step_clock.elapsed())
    values = _monitored(run, progress, loss)
    if values:
        run.tracker.log(values, progress.step)
    run.module._send_logged()


def ask(run: Run, progress: Progress, *, is_logged: bool) -> Stop | None:
    """Return the stop requested by a condition on counters, the clock and the training alone, if any.

    Values on the device are read about once a second, and when the loss was just read for logging.
    """
    engine = run.engine
    if not engine.watches or not (is_logged or run.timetable.looks(progress.elapsed)):
        return engine.stop_at(progress)
    run.timetable.looked(progress.elapsed)
    loss = run.stepper.losses.since_look()
    _warn_of(loss, run, progress)
    return engine.after_logging(progress, loss, run.stepper.metrics.since_look())


def observe(run: Run, initial: bool = False) -> Decision:
    """Evaluate, record the observation, decide, and save the models that were decided on."""
    began = time.perf_counter()
    run.hooks.on_evaluation_start()
    with run.stepper.averaged():
        observation, decision = _decide(run, initial=initial)
    record(run, decision)
    _update_state(run, observation, decision)
    _report(run, observation, decision, time.perf_counter() - began)
    _send(run, observation)
    if run.options.followed is not None and not initial:
        run.stepper.follow(run.options.followed.value(observation, run.engine.facts))
    if run.records.report is not None:
        run.records.report.update()
    clean_caches()
    run.hooks.on_evaluation_end()
    return decision


def _decide(run: Run, *, initial: bool) -> tuple[Observation, Decision]:
    """Evaluate the model, and save it where that is decided."""
    position, state = run.position, run.state
    evaluation = replace(run.evaluation, replicated=None) if initial else run.evaluation
    results = evaluate(evaluation) if evaluation else Results()
    for text in filter(run.records.is_new, results.notes):
        warn(text)
    state.evaluations_done += bool(run.evaluation)
    position.evaluation += not initial
    progress = position.progress(agreed(position.stopwatch.elapsed()))
    train_loss = math.nan if initial else run.stepper.losses.since_evaluation()
    if run.options.log is None and not initial:
        _warn_of(train_loss, run, progress)
    training = {} if initial else _training_metrics(run)
    observation = Observation(progress, results.values, train_loss, initial, training, results.replicates)
    run.records.observations.append(observation)
    with ThreadPoolExecutor(1) as pool:  # the line is flushed while models are written
        written = pool.submit(run.records.append, observation)
        decision = _save(run, run.engine.after_evaluation(observation))
    _append(written.result)
    return observation, decision


def _training_metrics(run: Run) -> dict[str, float]:
    """Return the means of the training metrics since the previous evaluation, warning once of each missing one."""
    means = run.stepper.metrics.since_evaluation()
    for name in run.stepper.metrics.names:
        if name not in means and run.records.is_new(name):
            warn(
                f"the training metric '{name}' was not logged since the last evaluation: "
                f"call self.log({{'{name}': value}}, self.state.global_step) in training_step"
            )
    return means


def _warn_of(loss: float, run: Run, progress: Progress) -> None:
    """Warn once that the training loss is no longer finite."""
    if not math.isfinite(loss) and run.records.is_new(TRAIN_LOSS):
        warn(f"the training loss is {loss} at step {progress.step}")


def record(run: Run, decision: Decision) -> None:
    """Record a decision, in memory and in the decision log."""
    run.records.decisions.append(decision)
    _append(lambda: run.records.decision_log.append(decision.to_json()))


def _append(append: Callable[[], str | None]) -> None:
    """Append a line to a journal, and warn if it has to wait."""
    said: list[str | None] = []
    from_each(lambda: said.append(append()))
    for text in filter(None, said):
        warn(text)


def _update_state(run: Run, observation: Observation, decision: Decision) -> None:
    state = run.state
    state.additional_metrics = {key: dict(metrics) for key, metrics in observation.values.items()}
    if observation.initial:
        return
    state.patience_left = run.engine.patience_left()
    for verdict in decision.saved:
        state.model_savings[verdict.rule] = verdict.kept[0].values
    if observation.train_loss < state.best_train_loss:
        state.best_train_loss = observation.train_loss
    losses = [metrics[VALID_LOSS] for metrics in observation.values.values()]
    if losses and sum(losses) / len(losses) < state.best_valid_loss:
        state.best_valid_loss = sum(losses) / len(losses)


def _send(run: Run, observation: Observation) -> None:
    """Send the values to the tracker."""
    values = named_for_trackers(run, observation.values, several=len(observation.values) > 1)
    if values:
        run.tracker.log(values, observation.progress.step)


def named_for_trackers(run: Run, values: Values, *, several: bool) -> dict[str, float]:
    """Return the monitored values by their names in trackers, with `several` datasets suffixed with the key of each."""
    named: dict[str, float] = {}
    monitor = run.options.monitor
    for key, metrics in values.items():
        suffix = f"_{key}" if several else ""
        for name, value in metrics.items():
            if name == VALID_LOSS and monitor.validation_loss:
                named[run.options.val_loss_name + suffix] = value
            elif name != VALID_LOSS and monitor.additional_metrics:
                named[name + suffix] = value
    return named


def _report(run: Run, observation: Observation, decision: Decision, seconds: float) -> None:
    for verdict in decision.verdicts:
        if verdict.outcome is Outcome.NAN and run.records.is_new(verdict.rule):
            warn(f"{verdict} at step {observation.progress.step}: it saves nothing until it is a number")
    run.display.evaluated(observation, decision, seconds)


def _save(run: Run, decision: Decision) -> Decision:
    """Write the models to save. A model that cannot be written is a warning, and its rule forgets that it saved.

    Raises:
        Failed: A rule's model could not be written, twice in a row.
    """
    savings, parts, failed = run.savings, run.checkpointer.model, run.records.failed_savings
    if savings is None or not decision.saved:
        return decision
    weights = whole_weights(parts.model, run.module.accelerator)
    beside = parts.kept.trained(run.stepper.held())
    rules = {rule.name: rule for rule in run.engine.rules.savings}
    decided = [(rules[verdict.rule], verdict) for verdict in decision.saved]
    errors: dict[str, BaseException] = {}  # on the main process

    def save() -> dict[str, str]:
        errors.update(savings.save_all(decided, weights, decision.progress.epoch, beside))
        return {name: f"{type(error).__name__}: {error}" for name, error in errors.items()}

    failures = on_main(save)
    for name in [rule.name for rule, _ in decided]:
        if name not in failures:
            failed.discard(name)
            continue
        if name in failed:
            raise Failed(failures[name]) from errors.get(name)
        failed.add(name)
        warn(f"{name} could not be saved at step {decision.progress.step}: {failures[name]}")
        decision = run.engine.undo_saving(decision, name, f"could not be saved: {failures[name]}")
    return decision


def _measured(run: Run, loss: float) -> dict[str, float]:
    """Return the values of the log of steps, which need no computation of their own."""
    norm = run.stepper.grad_norm
    measured = {TRAIN_LOSS: loss, "learning_rate": float(run.stepper.learning_rate)}
    return measured if norm is None else {**measured, "grad_norm": float(norm)}


def _monitored(run: Run, progress: Progress, loss: float) -> dict[str, float]:
    monitor, options = run.options.monitor, run.options
    values: dict[str, float] = {}
    if monitor.train_loss:
        values[options.train_loss_name] = loss
    if monitor.epoch:
        per_epoch, current = run.data.steps_per_epoch, run.data.steps_in(progress.epoch)
        part = progress.step_in_epoch / current if current else 0.0
        values["epoch"] = progress.step / per_epoch if per_epoch else progress.epoch + part
    if monitor.learning_rate:
        values["learning_rate"] = float(run.stepper.learning_rate)
    if monitor.grad_norm and run.stepper.grad_norm is not None:
        values["grad_norm"] = float(run.stepper.grad_norm)
    if run.module.accelerator.is_main_process:
        values |= utilization(monitor, run.device)
    return values

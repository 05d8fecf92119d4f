"""The training loop. It asks the engine, and carries out what it decides."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace

from accmt.data.loaders import Window
from accmt.distributed.collective import agreed
from accmt.distributed.signals import CHECKPOINT, END, Terminated
from accmt.loop.averages import settle_averages
from accmt.loop.evaluation_step import ask, log, observe, record
from accmt.loop.held_out import evaluate_held_out
from accmt.loop.hooks import TRAINING_DATA, loading
from accmt.loop.out_of_memory import clean_caches
from accmt.loop.progress import TrainingPosition
from accmt.loop.run import Run
from accmt.loop.sanity_check import try_out
from accmt.loop.timetable import StepInterval
from accmt.notices import warn
from accmt.rules import Decision, Due, Progress, Stop
from accmt.rules.decision import REQUESTED


def train(run: Run) -> Stop | None:
    """Train from the current position of the run to its end.

    begin, and try one batch of each validation dataset
    for each epoch:
        for each window of batches:             # of one optimizer step
            step
            if something is due, or this is the end: log, evaluate, save what rules say, checkpoint, stop
    average the kept models of rules that say so
    evaluate the saved models on the held-out datasets

    Returns:
        Why a rule or a condition stopped the training; None if it ran to its end.

    Raises:
        Terminated: SIGTERM requested the end; a checkpoint was made.
    """
    stop = _begin(run)
    if run.profiler is not None:
        run.profiler.start(run.position.step)
    while stop is None and not run.position.is_finished:
        stop = _train_epoch(run)
    run.finish_checkpoint()
    settle_averages(run)
    evaluate_held_out(run)
    run.state.finished = True
    run.hooks.on_fit_end()
    return stop


def _train_epoch(run: Run) -> Stop | None:
    """Train the rest of the current epoch."""
    position, stop, before = run.position, None, run.position.step
    position.step_clock.run()
    for window in loading(_windows(run), TRAINING_DATA, run.state):
        _step(run, window)
        if not run.timetable.is_due():
            run.last_step.settle()
            continue
        stop = _settle(run)
        run.last_step.note(run, is_settled=True)
        run.timetable.update()
        position.step_clock.run()
        if stop is not None or position.step == position.total_steps:
            break
    if position.step == before:
        raise RuntimeError(f"epoch {position.epoch} of the training data has no batches")
    if position.ended_epoch:
        position.next_epoch()
    return stop


def _begin(run: Run) -> Stop | None:
    """Call the first hooks, and do what comes before the first step; return the stop that a resumed training is at."""
    position, stop = run.position, None
    run.hooks.on_fit_start()
    for note in run.checkpointer.model.kept.begin():
        warn(note)
    elapsed = agreed(position.stopwatch.elapsed())
    run.timetable.looked(elapsed)
    if run.resumed:
        run.hooks.on_resume()
        stop = run.engine.standing_stop(position.progress(elapsed))
    if run.options.sanity_check and stop is None and not position.is_finished:
        for warning in try_out(replace(run.evaluation, loaders={**run.evaluation.loaders, **run.held_out.loaders})):
            warn(warning)
    if stop is None and not position.is_settled:
        stop = _resume_within_step(run)
    if not run.resumed and run.options.eval_when_start and run.evaluation:
        observe(run, initial=True)
    return stop


def _resume_within_step(run: Run) -> Stop | None:
    """Do the work due at a step whose checkpoint was made because that work failed."""
    with warnings.catch_warnings():
        # torch warns if a scheduler steps first: this one follows the optimizer step before the resume.
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
        stop = _settle(run)
    run.position.is_settled = True
    if run.position.ended_epoch:
        run.position.next_epoch()
    return stop


def _windows(run: Run) -> Iterator[Window]:
    """Return the windows of the epoch from the current position on, with the random state as it was at this point."""
    position, state = run.position, run.state
    state.epoch, state.train_step = position.epoch, position.batch
    state.is_end_of_epoch = False
    state.is_last_epoch = position.epoch + 1 == position.total_epochs
    run.timetable.update()
    if not position.is_within_epoch:
        run.random.resume()
        run.hooks.on_epoch_start()
        run.stepper.start_epoch()
        run.random.start_epoch()
        return run.data.windows(position.epoch)
    go_on = run.random.rewind()
    if go_on is None:
        return run.data.windows(position.epoch, position.batch, offset=position.offset)
    return run.data.windows(position.epoch, position.batch, go_on, position.offset)


# Callbacks may write files here that the next epoch reads: nothing is loaded ahead then.
_BETWEEN = (
    "on_evaluation_start",
    "on_before_validation_step",
    "on_after_validation_step",
    "on_evaluation_end",
    "on_epoch_end",
    "on_epoch_start",
)


def _step(run: Run, window: Window) -> None:
    """Make an optimizer step, and count it."""
    run.stepper.step(window)
    run.stepper.metrics.commit()
    run.position.advance(window)
    run.state.global_step = run.position.step
    run.last_step.note(run, is_settled=False)
    if run.profiler is not None:
        run.profiler.stepped()


def _settle(run: Run) -> Stop | None:
    """Do whatever is due at this step, in the order of the language: log, evaluate, save, checkpoint, stop."""
    position = run.position
    if run.heartbeat.has_news:
        run.finish_checkpoint()
    ends = run.state.is_end_of_epoch = position.ends
    progress = position.progress(agreed(position.stopwatch.elapsed()))
    due = run.engine.after_step(progress)
    is_logged = due.log or _ends(run.options.log, position)
    if is_logged:
        log(run, progress)
    position.step_clock.pause()
    stop = _stop_before(run, progress, is_logged=is_logged)
    evaluates = _evaluates(run, due, stop)
    if position.ended_epoch and stop is None and not position.is_last_step and not any(map(run.hooks.calls, _BETWEEN)):
        run.data.start_ahead(position.epoch + 1)
    decision = observe(run) if evaluates else None
    if decision is None and (ends or _ends(run.options.clean, position)):
        clean_caches()
    if position.ended_epoch:
        run.stepper.end_epoch()
    if ends:
        run.hooks.on_epoch_end()
    if decision is not None:
        stop = stop or decision.stop
    if stop is None and (evaluates or ends):
        stop = _stop_of_hooks(run, has_evaluated=evaluates)
    _checkpoint(run, is_due=due.checkpoint or (decision is not None and decision.checkpoint), stop=stop)
    return stop


def _stop_before(run: Run, progress: Progress, *, is_logged: bool) -> Stop | None:
    """Return the stop requested at this step, by a condition or by the script, regardless of a later evaluation."""
    stop = ask(run, progress, is_logged=is_logged)
    if stop is None:
        return _requested(run) if run.heartbeat.is_stopped else None
    run.engine.stay_stopped(stop)
    record(run, Decision(progress, stop=stop))
    return stop


def _stop_of_hooks(run: Run, *, has_evaluated: bool) -> Stop | None:
    """Return the stop that a callback has just requested, at an evaluation or the end of an epoch."""
    stop = _requested(run)
    if stop is not None and not has_evaluated and _evaluates(run, Due(), stop):
        observe(run)
    return stop


def _requested(run: Run) -> Stop | None:
    """Return the stop that the script requests, and record it; None if it requests none."""
    reason = run.heartbeat.asked_to_stop()
    if reason is None:
        return None
    stop = Stop(REQUESTED, reason)
    record(run, Decision(run.position.progress(agreed(run.position.stopwatch.elapsed())), stop=stop))
    return stop


def _checkpoint(run: Run, *, is_due: bool, stop: Stop | None) -> None:
    """Make a checkpoint if one is due, at the end, or when a signal requests one.

    Raises:
        Terminated: SIGTERM requests the end.
    """
    asked, is_end = run.heartbeat.weight, stop is not None or run.position.is_last_step
    if is_due or is_end or asked:
        run.checkpoint()
    if asked:
        run.records.steps.add_event(run.position.step, "SIGTERM" if asked == END else "SIGUSR1")
    if asked == CHECKPOINT:
        run.heartbeat.forget(asked)
    if asked == END and not is_end:
        raise Terminated


def _evaluates(run: Run, due: Due, stop: Stop | None) -> bool:
    """Return whether to evaluate; without validation data, rules are evaluated at the end of every epoch."""
    if not run.evaluation:
        return run.position.ends
    return due.evaluate or (run.options.eval_when_finish and (stop is not None or run.position.is_last_step))


def _ends(interval: StepInterval | None, position: TrainingPosition) -> bool:
    return interval is not None and interval.ends_at(position.step, ends_epoch=position.ends)

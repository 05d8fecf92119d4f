"""The training loop. It asks the engine, and carries out what it decides."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

from accmt.checkpoint.rng import random_state, set_random_state
from accmt.loop.compare import know_data
from accmt.loop.data import Window
from accmt.loop.memory import clean_caches
from accmt.loop.observe import log, observe, record
from accmt.loop.processes import agreed
from accmt.loop.run import NoCheckpointer, Run
from accmt.loop.signals import CHECKPOINT, END, Terminated
from accmt.rules import Decision, Due, Stop


def train(run: Run) -> Stop | None:
    """Train from where the run stands to its end.

    for each epoch:
        for each window of batches:             # of one optimizer step
            step
            if something is due, or this is the end: log, evaluate, save what rules say, checkpoint, stop

    Returns:
        Why a rule or a condition stopped the training; None if it ran its length.

    Raises:
        Terminated: SIGTERM asked for the end; a checkpoint was made.
    """
    if not run.resumed and not isinstance(run.checkpointer, NoCheckpointer):
        know_data(run.record, run.data, run.device)
    run.hooks.on_fit_start()
    stop = None
    if run.resumed:
        run.hooks.on_resume()
        stop = run.engine.standing_stop(run.position.progress(agreed(run.position.stopwatch.elapsed())))
    elif run.options.eval_when_start and run.evaluation:
        observe(run, initial=True)
    while stop is None and not run.position.is_finished:
        stop = _train_epoch(run)
    run.checkpointer.finish(run)
    run.state.finished = True
    run.hooks.on_fit_end()
    return stop


def _train_epoch(run: Run) -> Stop | None:
    """Train the rest of the epoch that the run stands in."""
    position, stepper, state = run.position, run.stepper, run.state
    stop, before = None, position.step
    for window in _windows(run):
        stepper.step(window)
        position.advance(window)
        state.global_step = position.step
        strikes = _strikes(run)  # asked at every step, whatever else is due
        if position.step < run.next_stop and not window.is_last and not strikes:
            continue
        stop = _settle(run)
        run.next_stop = _next_stop(run)
        if stop is not None or position.step == position.total_steps:
            break
    if position.step == before:
        raise RuntimeError(f"epoch {position.epoch} of the training data has no batches")
    if position.ended_epoch:
        position.next_epoch()
    return stop


def _windows(run: Run) -> Iterator[Window]:
    """The windows of the epoch from the current position on, with the random state as it was at this point."""
    position, state = run.position, run.state
    state.epoch, state.train_step = position.epoch, position.batch
    state.is_end_of_epoch = False
    state.is_last_epoch = position.epoch + 1 == position.total_epochs
    resumed, run.resumed_random = run.resumed_random, None
    run.next_stop = _next_stop(run)
    if not position.is_within_epoch:
        if resumed is not None:
            set_random_state(resumed, run.device)
        run.hooks.on_epoch_start()
        run.epoch_random = random_state(run.device)
        return run.data.windows(position.epoch)
    if resumed is None or not run.epoch_random:
        return run.data.windows(position.epoch, position.batch, offset=position.offset)
    set_random_state(run.epoch_random, run.device)
    go_on = partial(set_random_state, resumed, run.device)
    return run.data.windows(position.epoch, position.batch, go_on, position.offset)


def _settle(run: Run) -> Stop | None:
    """Whatever is due at this step, in the order of the language: log, evaluate, save, checkpoint, stop."""
    position = run.position
    if run.pulse.has_news:
        run.checkpointer.finish(run)
    ends = run.state.is_end_of_epoch = position.ends
    progress = position.progress(agreed(position.stopwatch.elapsed()))
    stop = log(run, progress) if _logs(run, ends) else None
    if stop is not None:
        run.engine.stay_stopped(stop)
        record(run, Decision(progress, stop=stop))
    due = run.engine.after_step(progress)
    checkpoint = due.checkpoint
    if _evaluates(run, due, stop):
        decision = observe(run)
        stop, checkpoint = stop or decision.stop, checkpoint or decision.checkpoint
    elif ends or _cleans(run):
        clean_caches()
    if position.ended_epoch:
        run.stepper.end_epoch()
    if ends:
        run.hooks.on_epoch_end()
    is_end = stop is not None or position.is_last_step
    asked = run.pulse.weight
    if checkpoint or is_end or asked:
        run.checkpointer.save(run)
    if asked == CHECKPOINT:
        run.pulse.forget(asked)
    if asked == END and not is_end:
        raise Terminated
    return stop


def _evaluates(run: Run, due: Due, stop: Stop | None) -> bool:
    """Without validation data the rules are asked at the end of every epoch."""
    if not run.evaluation:
        return run.position.ends
    return due.evaluate or (run.options.eval_when_finish and (stop is not None or run.position.is_last_step))


def _logs(run: Run, ends: bool) -> bool:
    every = run.options.log_every
    if every is None:
        return False
    return ends if every == -1 else run.position.step % every == 0


def _cleans(run: Run) -> bool:
    every = run.options.clean_every
    return every is not None and run.position.step % every == 0


def _next_stop(run: Run) -> float:
    """The next step at which something may be due; the end of an epoch is one anyway."""
    step = run.position.step
    stops = [run.engine.next_step or math.inf, run.position.total_steps or math.inf]
    for every in (run.options.log_every, run.options.clean_every):
        if every not in (None, -1):
            stops.append((step // every + 1) * every)
    return min(stops)


def _strikes(run: Run) -> bool:
    """Whether something has come that no number of steps says."""
    return run.pulse.strikes(run.engine.next_elapsed, run.position.step)

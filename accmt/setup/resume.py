"""Start of a training: resume from its folder, or move old files out of the way. The folder's lock must be held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import PartialState

from accmt.checkpoint import publish
from accmt.checkpoint.archive import archive_training, move_to_archive
from accmt.checkpoint.checkpointer import Saved
from accmt.checkpoint.checkpoints import FOLDER, Checkpoint, Checkpoints
from accmt.checkpoint.format import understood
from accmt.checkpoint.saved_models import savings_in
from accmt.distributed.collective import from_main
from accmt.loop.run import Run
from accmt.loop.stateful_parts import EngineState
from accmt.loop.utilization import begin_measuring
from accmt.notices import warn
from accmt.setup.plan import Plan
from accmt.setup.run_file import describe_run, parameters_of, record_start
from accmt.tracking.start import start_trackers
from accmt.tracking.tracker import Beginning, NoTracker, Tracker, flat
from accmt.tracking.training_file import Description, update_description, write_description


def find_checkpoint(plan: Plan) -> Checkpoint | None:
    """Clean up after a training that died, and return the verified checkpoint to resume from, if there is one.

    Raises:
        NoCheckpoint: If the requested checkpoint cannot be used.
    """
    return from_main(lambda: _found(plan))


def begin_training(plan: Plan, run: Run, checkpoint: Checkpoint | None) -> list[str]:
    """Start the trackers, and resume from a checkpoint or start from scratch.

    Returns:
        Notes to show before the first step, one line each.

    Raises:
        Mismatch: If the checkpoint belongs to another training; nothing was touched.
        ConfigError: It is the end of a training on other data, or the current settings cannot continue from it.
        NoCheckpoint: Its contents are not those of a checkpoint; neither model nor folder was changed.
    """
    if checkpoint is None:
        return _start_from_scratch(plan, run)
    plan.settings.know_data(run.device)
    return _continue(plan, run, checkpoint)


def _found(plan: Plan) -> Checkpoint | None:
    path, options = plan.model_path, plan.options.checkpoint
    for folder in (path, path / FOLDER, *(path / rule.folder for rule in plan.rules.savings)):
        publish.recover(folder)
    checkpoints, resume = Checkpoints(path), options.resume
    if resume is False or (resume is None and not options.enabled):
        return None
    if resume is not None and not isinstance(resume, bool) and resume != -1:
        return checkpoints.at(resume)
    newest = checkpoints.newest()
    for line in checkpoints.refused:
        warn(line)
    if newest is not None and newest == checkpoints.all()[-1] and options.enabled:
        checkpoints.prune(options.keep)  # a training that died may not have pruned
    return newest


def _start_from_scratch(plan: Plan, run: Run) -> list[str]:
    description = describe_run(plan, None)
    run.module.tracker = _tracker(plan, None, description)
    aside, lost = from_main(lambda: _cleared(plan, run, description))
    for journal in run.records.journals:
        journal.lines = 0
    plan.position.stopwatch.set(0.0)
    _warn_of(lost)
    return [] if aside is None else [f"the files of the earlier training were moved to {aside}"]


def _cleared(plan: Plan, run: Run, description: dict[str, Any]) -> tuple[Path | None, list[str]]:
    """Move away the files of an earlier training, and write the descriptions of the new one."""
    aside = archive_training(plan.model_path, savings_in(plan.model_path))
    for journal in run.records.journals:
        journal.cut(0)
    run.records.steps.begin()
    write_description(plan.model_path, Description(plan.rules, plan.facts, plan.options.given["log_every"]))
    return aside, record_start(plan.model_path, description, [])


def _continue(plan: Plan, run: Run, checkpoint: Checkpoint) -> list[str]:
    saved = run.checkpointer.read(checkpoint)
    run.position.load_state_dict(saved.shared["position"])  # a schedule may be built for the length from there
    engine = EngineState(run.engine).restored(saved.shared["engine"])
    with understood(checkpoint.path):
        changes = plan.settings.compare(saved, run.position, engine)
    description = describe_run(plan, checkpoint)
    run.module.tracker = _tracker(plan, saved, description)
    with understood(checkpoint.path), plan.schedule.applied():
        said = run.checkpointer.load(saved)
    rules = list(said["engine"])
    notes = [f"continuing from {checkpoint.path.name}", *rules, *said.get("data", ()), *changes]
    notes += [*said["model"], *said["position"]]
    lost = list(said["records"])
    if plan.options.checkpoint.goes_back:
        later = from_main(lambda: _later_put_aside(plan.model_path, checkpoint))
        notes += [] if later is None else [f"the later checkpoints were moved to {later}"]
    lost += from_main(lambda: _describe(plan, rules))
    from_main(lambda: run.records.steps.begin(checkpoint.step, checkpoint.path.name))
    lost += from_main(lambda: record_start(plan.model_path, description, [*rules, *changes]))
    _warn_of(lost)
    return notes + _settle_savings(run)


def _warn_of(lost: list[str]) -> None:
    """Warn of each damage that was found: unlike notes, warnings are also shown with `quiet=True`."""
    for line in lost:
        warn(line)


def _later_put_aside(model_path: Path, checkpoint: Checkpoint) -> Path | None:
    """Move away checkpoints later than the one resumed from, newest first, so that none of them is used again."""
    later = [other.path for other in reversed(Checkpoints(model_path).all()) if other.index > checkpoint.index]
    return move_to_archive(model_path, later) if later else None


def _describe(plan: Plan, changes: list[str]) -> list[str]:
    """Write the description of a resumed training, including the settings that changed since it began."""
    description = Description(plan.rules, plan.facts, plan.options.given["log_every"], tuple(changes))
    return update_description(plan.model_path, description)


def _tracker(plan: Plan, saved: Saved | None, description: dict[str, Any]) -> Tracker:
    """Create the trackers on the main process; if one fails, all processes learn of it."""
    options, tracking = plan.options, plan.options.tracking
    started: list[Tracker] = [NoTracker()]

    def start() -> None:
        former = {} if saved is None else saved.shared["tracker"]
        step = None if saved is None else saved.checkpoint.step
        parameters = {**parameters_of(description), **flat({**options.hps.to_dict(), **tracking.config})}
        names, goes_back = (tracking.logging_dir, tracking.track_name), options.checkpoint.goes_back
        beginning = Beginning(*names, parameters, former, step, goes_back, tracking.folder)
        started[0] = start_trackers(tracking.trackers, beginning, plan.model_path, plan.display.warn)
        unmeasured = begin_measuring(options.loop.monitor, PartialState().device) if tracking.trackers else None
        if unmeasured is not None:
            warn(unmeasured)

    from_main(start)
    return started[0]


def _settle_savings(run: Run) -> list[str]:
    """Reconcile what rules remember with the models in their folders; return the differences, one line each."""
    position, notes = run.position, []
    if run.savings is not None:
        notes = run.savings.settle(run.engine, position.evaluation, position.step, from_main)
    remembered = {name for name, state in run.engine.states.items() if state.kept}
    run.state.model_savings = {k: values for k, values in run.state.model_savings.items() if k in remembered}
    return notes

"""One training from its plan to its end, with all processes, as the only one in its folder."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from accelerate import Accelerator, PartialState

from accmt.checkpoint.checkpoints import Checkpoint
from accmt.checkpoint.folder_check import check_folders
from accmt.checkpoint.lock import Lock
from accmt.checkpoint.publish import end_threads
from accmt.distributed.collective import from_main
from accmt.distributed.failures import Failures
from accmt.distributed.process_group import leave_processes, leave_side_groups
from accmt.distributed.shared_folder import require_shared
from accmt.distributed.signals import END, Signals, Terminated
from accmt.hyperparameters import ConfigError, Problem
from accmt.loop.run import Run
from accmt.loop.supervise import supervise
from accmt.notices import heard_by, warn
from accmt.seeding import set_seed
from accmt.setup.best import restore_best
from accmt.setup.build import assemble
from accmt.setup.method_check import uncalled
from accmt.setup.model import lent
from accmt.setup.plan import Plan
from accmt.setup.resume import begin_training, find_checkpoint
from accmt.setup.summary import after_training, before_training, nothing_done
from accmt.states import TrainingState
from accmt.tracking.history import TrainingHistory


def fit(
    make_plan: Callable[[], Plan],
    attach: Callable[[Run], None],
    listener: Callable[[str], None],
    *,
    destroys: bool,
    seed: int | None = None,
) -> TrainingHistory | Terminated:
    """Train with all processes, and shut down however it ends.

    Args:
        make_plan: Plans the training.
        attach: Makes the run visible to the user, once it is at its starting point.
        listener: Prints a warning while there is no plan.
        destroys: Destroy the process group afterwards.
        seed: Seeds all random number generators before anything is planned; a checkpoint restores its own states.

    Returns:
        The history of the training; or the error of a SIGTERM, if one came.
    """
    signals, failures = Signals(), Failures()
    try:
        if seed is not None:
            set_seed(seed)
        with heard_by(listener):
            plan = make_plan()
        with heard_by(plan.display.warn):
            history = _fit(plan, attach, signals)
        return Terminated() if signals.weight == END else history
    except Terminated as error:
        PartialState().wait_for_everyone()  # launchers kill the other processes when one has ended
        return error
    except BaseException as error:
        failures.show_first(error)
        raise
    finally:
        leave_side_groups()
        if destroys:
            leave_processes()


def _fit(plan: Plan, attach: Callable[[Run], None], signals: Signals) -> TrainingHistory:
    lock = Lock(plan.model_path)
    try:
        from_main(lambda: _occupy(lock, plan))
    except OSError as error:
        problem = Problem("model_path", f"'{plan.model_path}' cannot be written: {error.strerror or error}")
        raise ConfigError([problem], "Trainer(...)") from None
    try:
        require_shared(plan.model_path)
        with lent(plan.module):
            run = _begun(plan, find_checkpoint(plan), signals)
            attach(run)
            try:
                start = run.position.step
                with signals.watched():
                    stop = supervise(run, lambda: _identify_data(plan, run))
                if run.resumed and run.position.step == start:
                    warn(nothing_done(plan, stop))
            finally:
                run.close()
            restore_best(run, plan.model_path, plan.options.saving.restored)
            run.display.summarize(*after_training(run, stop, plan.model_path))
            return TrainingHistory.of(run.records.observations, run.records.decisions)
    finally:
        plan.close()
        _free_memory(plan.accelerator)
        end_threads()
        lock.release()


def _free_memory(accelerator: Accelerator) -> None:
    """Release what the Accelerator holds; its full garbage collection finds nothing to do if no device depends on it,
    because it takes as long as a small training."""
    is_left_out = not torch.accelerator.is_available() and gc.get_freeze_count() == 0
    if is_left_out:
        gc.freeze()
    accelerator.free_memory()
    if is_left_out:
        gc.unfreeze()


def _identify_data(plan: Plan, run: Run) -> None:
    """Find what identifies the training data, if checkpoints will record it; a resumed training has done so."""
    if plan.options.checkpoint.enabled and not run.resumed:
        plan.settings.know_data(run.device)


def _begun(plan: Plan, checkpoint: Checkpoint | None, signals: Signals) -> Run:
    """Return the run at its starting point. If that fails, its trackers are closed as well."""
    try:
        run = assemble(plan, TrainingState(), signals)
        notes = begin_training(plan, run, checkpoint)
        run.display.describe(*before_training(plan), notes)
        options = plan.options
        for warning in (*plan.warnings, *uncalled(plan.module, options.callbacks, options.data.collates)):
            warn(warning)
        return run
    except BaseException:
        plan.module.tracker.close("FAILED")
        raise


def _occupy(lock: Lock, plan: Plan) -> None:
    """Lock the folder of a training, if everything in it can be written.

    Raises:
        OSError: If something cannot be written; the folder is unlocked again.
    """
    warning = lock.acquire()
    try:
        if warning is not None:
            warn(warning)
        check_folders(plan.model_path, plan.rules, has_checkpoints=plan.options.checkpoint.enabled)
    except BaseException:
        lock.release()
        raise

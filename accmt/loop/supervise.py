"""Running the loop so that its end, however it comes, is reported once: to callbacks, terminal and tracker."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress

from rich.text import Text

from accmt.display.display import ConsoleDisplay
from accmt.display.gpu_users import gpu_users
from accmt.display.notebook import notebook_shell
from accmt.distributed.signals import Terminated
from accmt.loop.hooks import tell
from accmt.loop.out_of_memory import is_out_of_memory
from accmt.loop.run import Run
from accmt.loop.train import train
from accmt.notices import warn
from accmt.rules import Stop
from accmt.rules.printable import masked
from accmt.tracebacks import end_with
from accmt.tracking.tracker import Status


def supervise(run: Run, prepare: Callable[[], None]) -> Stop | None:
    """Train, report an exception to the callbacks once, and raise it again.

    Args:
        run: The run.
        prepare: Called before the training; its exceptions are reported as well.

    Returns:
        Why a rule or a condition stopped the training; None if it ran to its end.
    """
    status: Status = "FAILED"
    last: Text | None = None
    why = ""
    display = run.display
    display.start(run.moment)
    try:
        prepare()
        stop = train(run)
        run.records.flush()
        status = "FINISHED"
        return stop
    except (KeyboardInterrupt, Terminated) as error:
        status = "KILLED"
        _finish_checkpoint(run)
        if isinstance(error, KeyboardInterrupt):
            _checkpoint_last_step(run)
        display.stop()
        if isinstance(error, KeyboardInterrupt):
            last = _interrupted(run, "interrupted")
            end_with(error, _on_stderr(run, last))
            run.hooks.on_keyboard_interrupt(error)
        else:
            display.show(_interrupted(run, "interrupted"))
            run.hooks.on_exception(error)  # type: ignore[arg-type]  # a SystemExit
        raise
    except BaseException as error:
        why = masked(f"{type(error).__name__}: {error}")[:300]
        _finish_checkpoint(run)
        if _checkpoint_last_step(run):
            display.stop()
            display.show(_interrupted(run, "failed"))
        if run.stepper.options.repeats and is_out_of_memory(error):
            display.stop()
            display.show(gpu_users())
        tell(run.hooks, error)
        raise
    finally:
        display.stop()
        try:
            _conclude(run, status, why)
            run.tracker.close(status)
        finally:
            if last is not None:
                display.show(last)


def _conclude(run: Run, status: Status, why: str) -> None:
    """Log the end, and write the last report and send it."""
    run.records.steps.add_event(run.position.step, status, why)
    report = run.records.report
    if report is not None and report.finish():
        run.tracker.log_artifact(report.path)


def _finish_checkpoint(run: Run) -> None:
    """Wait for a checkpoint in the background; an error in it must not hide why the training ends."""
    try:
        run.finish_checkpoint()
    except Exception as error:
        warn(f"the last checkpoint could not be made: {error}")


def _checkpoint_last_step(run: Run) -> bool:
    """Checkpoint the last complete step, if requested; an error in it must not hide why the training ends."""
    try:
        if is_due := run.last_step.put_back(run):
            run.checkpoint()
            run.finish_checkpoint()
        return is_due
    except Exception as error:
        warn(f"no checkpoint was made of the last complete step: {error}")
        return False


def _on_stderr(run: Run, text: Text) -> str:
    """Return what the main process writes to stderr of a text, which the display may show at the same place."""
    is_one = notebook_shell() is not None
    with suppress(OSError, ValueError, AttributeError):  # a stream without a file
        is_one = is_one or os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
    is_seen = isinstance(run.display, ConsoleDisplay) and is_one
    return text.plain if run.module.accelerator.is_main_process and not is_seen else ""


def _interrupted(run: Run, how: str) -> Text:
    """Say from which step an interrupted training would resume."""
    step, checkpointed = run.position.step, run.checkpointer.last_step
    how = f"{how}, before the held-out datasets were evaluated," if run.held_out and run.savings else how
    if checkpointed is None and not run.checkpointer.writes:
        return Text(f"{how} at step {step}; checkpoints are off: run again to start from scratch", "bold")
    if checkpointed is None:
        return Text(f"{how} at step {step}; there is no checkpoint yet: run again to start from scratch", "bold")
    repeated = step - checkpointed
    again = f" ({repeated} step{'s are' if repeated > 1 else ' is'} repeated)" if repeated else ""
    return Text(f"{how} at step {step}; run again to continue from step {checkpointed}{again}", "bold")

"""Agreement of all processes on how a trial ended.

If all processes do the same, even fail at the same point, they can communicate afterwards. But if one of them ends a
trial while the others are still training, they wait for it until the timeout of the process group, which may be half an
hour. So a process that ends a trial early first checks whether the others do too; it asks the process group's store,
which needs no communication in which they would have to take part.
"""

from __future__ import annotations

from datetime import timedelta

from accelerate import PartialState
from torch import distributed as dist

from accmt.distributed.collective import everywhere
from accmt.distributed.failures import Meeting
from accmt.hp_search.study import TrialOutcome, TrialState

PATIENCE = timedelta(seconds=60)
"""Time within which another process may end a trial for the same reason as this one."""

_HERE = "here"


class EndedAlone(RuntimeError):
    """Raised when one process has ended a trial and the others wait for it: the search cannot continue."""


def common_outcome(outcome: TrialOutcome, trial: str) -> TrialOutcome:
    """Return the common outcome of a trial: failed or pruned if it was on any process. Call it on all of them.

    Args:
        outcome: The outcome on this process.
        trial: A text that identifies the trial.

    Raises:
        EndedAlone: If the others are still in the middle of the trial.
    """
    _meet(outcome, trial)
    outcomes = everywhere(lambda: outcome)
    failures = [(rank, other) for rank, other in enumerate(outcomes) if other.state is TrialState.FAILED]
    if failures:
        # A process that failed because another did has no details.
        rank, first = next((failure for failure in failures if failure[1].details), failures[0])
        place = f"process {rank}: " if len(outcomes) > 1 else ""
        return TrialOutcome(TrialState.FAILED, error=f"{place}{first.error}", details=first.details)
    return next((other for other in outcomes if other.state is TrialState.PRUNED), outcome)


def _meet(outcome: TrialOutcome, trial: str) -> None:
    """Check, if this process ended the trial early, whether the others did too."""
    if not dist.is_initialized():
        return
    meeting = Meeting(trial)
    meeting.tell(_HERE)
    if outcome.state is TrialState.COMPLETE:
        return
    told = meeting.told(PATIENCE)
    if told is None:
        rank = PartialState().process_index
        text = f"process {rank} ended {trial} alone, and the others wait for it: {outcome.error}"
        meeting.tell(text)
        error = EndedAlone(text)
        error.add_note(outcome.details)
        raise error
    # If the connection to a process that left breaks, the others notice and end the trial as well.
    if left := [text for text in told if text != _HERE]:
        raise EndedAlone(left[0])

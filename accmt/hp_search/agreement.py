"""How a trial ended, agreed on by all processes.

What all processes do alike, an error at the same point included, they can agree on: they meet afterwards. But one that
ends a trial while the others go on is waited for, in the middle of their training, until the timeout of the process
group, which may be half an hour. So whoever ends a trial early first looks whether the others do; the store of the
process group tells, without any communication that they would have to take part in.
"""

from __future__ import annotations

from datetime import timedelta

from accelerate import PartialState
from torch import distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from accmt.checkpoint.together import everywhere
from accmt.hp_search.study import Outcome, State

PATIENCE = timedelta(seconds=60)
"""How much later than this process another may end a trial that both end for one reason."""

_HERE = "here"


class EndedAlone(RuntimeError):
    """One process has ended a trial, and the others wait for it: the search cannot go on."""


def agreed(outcome: Outcome, trial: str) -> Outcome:
    """What became of a trial on all processes: it has failed, or was pruned, if it was on any. All must call this.

    Args:
        outcome: What became of it on this process.
        trial: What tells the trial from all others.

    Raises:
        EndedAlone: The others are still in the middle of it.
    """
    _meet(outcome, trial)
    outcomes = everywhere(lambda: outcome)
    failures = [(rank, other) for rank, other in enumerate(outcomes) if other.state is State.FAILED]
    if failures:
        # One that failed because another did has no details.
        rank, first = next((failure for failure in failures if failure[1].details), failures[0])
        place = f"process {rank}: " if len(outcomes) > 1 else ""
        return Outcome(State.FAILED, error=f"{place}{first.error}", details=first.details)
    return next((other for other in outcomes if other.state is State.PRUNED), outcome)


def _meet(outcome: Outcome, trial: str) -> None:
    """Where this process ended the trial early, see whether the others did as well."""
    state = PartialState()
    if not dist.is_initialized():
        return
    store = _get_default_store()
    keys = [f"accmt/{trial}/{rank}" for rank in range(state.num_processes)]
    store.set(keys[state.process_index], _HERE)
    if outcome.state is State.COMPLETE:
        return
    try:
        store.wait(keys, PATIENCE)
    except RuntimeError:
        text = f"process {state.process_index} ended {trial} alone, and the others wait for it: {outcome.error}"
        store.set(keys[state.process_index], text)
        error = EndedAlone(text)
        error.add_note(outcome.details)
        raise error from None
    # Where the connection to a process that has left breaks, the others learn of it, and end the trial too.
    left = [text for text in map(bytes.decode, store.multi_get(keys)) if text != _HERE]
    if left:
        raise EndedAlone(left[0])

"""Loop of a running search: ask the study for a trial, run it, and tell its outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from accelerate import PartialState

from accmt.checkpoint.rng import set_random_state
from accmt.display.display import Display
from accmt.hp_search.copies import Copies
from accmt.hp_search.space import Space
from accmt.hp_search.study import SharedStudy
from accmt.hp_search.summary import after_search, before_search, ranked, trial_line
from accmt.hp_search.trial import Experiment, run_trial
from accmt.loop.out_of_memory import clean_caches
from accmt.tracebacks import end_with

_INTERRUPTED = "interrupted; run again to continue the study, if it has a storage and load_if_exists=True"
SCHEDULERS = "scheduler"
"""The name of the schedulers among what is copied for each trial."""


@dataclass(frozen=True, slots=True)
class Search:
    """Parts of a search.

    `copies` makes the arguments of each trainer, including the schedulers to choose from. `random` is the random state
    at the start of every trial, before its module is made.
    """

    experiment: Experiment
    copies: Copies
    space: Space
    study: SharedStudy
    display: Display
    device: torch.device
    random: Mapping[str, torch.Tensor]


def run_trials(search: Search, count: int, total: int | None) -> None:
    """Run trials until there are enough.

    for each trial:
        ask for values
        train with them
        tell the outcome

    Args:
        search: The parts.
        count: The maximum number of trials to run.
        total: The number of complete or pruned trials at which the study is done; None for no limit.
    """
    study, display, objective = search.study, search.display, search.experiment.objective
    display.show(*before_search(study.name, search.space, objective, study.trials()))
    try:
        for _ in range(count):
            if not _run_trial(search, total):
                break
            _forget(search)
    except BaseException as error:
        study.abandon(error)
        if isinstance(error, KeyboardInterrupt):
            display.show(*after_search(study.name, objective, study.trials()))
            end_with(error, _INTERRUPTED if PartialState().is_main_process else "")
        raise
    display.show(*after_search(study.name, objective, study.trials()))


def _run_trial(search: Search, total: int | None) -> bool:
    """Run the next trial; return whether the study had one to run."""
    study, objective = search.study, search.experiment.objective
    asked = study.ask(total)
    if asked is None:
        return False
    arguments = search.copies.make()
    hps = replace(search.space, schedulers=arguments.pop(SCHEDULERS)).hyperparameters(asked.values)
    outcome = run_trial(search.experiment, study, asked.number, hps, arguments)
    study.tell(outcome)
    best = next(iter(ranked(study.trials(), objective.direction)), None)
    search.display.show(trial_line(search.space, asked, outcome, objective.name, best))
    return True


def _forget(search: Search) -> None:
    """Free the module of a trial before the next one is made, and restore the random state of the first trial."""
    if search.device.type != "cpu":
        clean_caches()  # memory of a device is not freed on demand, as main memory is
    set_random_state(search.random, search.device)

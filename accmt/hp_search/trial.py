"""One trial: a separate training, on all processes, that ends complete, pruned or failed."""

from __future__ import annotations

import shutil
import tempfile
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from accmt.callbacks import Callback
from accmt.config.errors import ConfigError, Problem
from accmt.distributed.collective import from_main
from accmt.distributed.failures import PeerFailed
from accmt.hp_search.agreement import common_outcome
from accmt.hp_search.copies import Datasets
from accmt.hp_search.objective import SearchObjective
from accmt.hp_search.study import SharedStudy, TrialOutcome, TrialState, load_optuna
from accmt.hyperparameters import HyperParameters
from accmt.module import AcceleratorModule
from accmt.rules import RuleError
from accmt.tracking.outbox import FOLDER as OUTBOX
from accmt.trainer import Trainer

PLACE = "HyperParameterSearch(...)"
"""Source named in the error for a mistake that concerns all trials."""


class SameModel(ConfigError):
    """Raised when two trials would train the same model."""


class Modules:
    """Makes the module of each trial, and checks that its model is a new one."""

    def __init__(self, get_module: Callable[[], AcceleratorModule]) -> None:
        self._get_module = get_module
        self._before: Callable[[], Any] = lambda: None
        self._next: AcceleratorModule | None = None

    def peek(self) -> AcceleratorModule:
        """Return the module of the next trial."""
        self._next = self.make()
        return self._next

    def make(self) -> AcceleratorModule:
        """Make a module; no reference to it is kept here.

        Raises:
            SameModel: If its model is that of the previous trial.
        """
        if self._next is not None:
            module, self._next = self._next, None
            return module
        module = self._get_module()
        model = getattr(module, "model", None)
        if model is not None:
            if model is self._before():
                text = "returned the model of the previous trial: it must make a new one each time"
                raise SameModel([Problem("get_module_fn", text)], PLACE)
            self._before = weakref.ref(model)
        return module


@dataclass(frozen=True, slots=True)
class Experiment:
    """Parts that all trials share.

    Attributes:
        modules: Makes the modules.
        train_dataset, val_dataset: The datasets for `fit`.
        datasets: Restores the datasets to the state that the first trial found.
        objective: The objective of a trial.
        model_path: The parent of the trials' folders; None for temporary folders.
    """

    modules: Modules
    train_dataset: Any
    val_dataset: Any
    datasets: Datasets
    objective: SearchObjective
    model_path: Path | None


class Reporter(Callback):
    """Reports the value of every evaluation to the study, and ends the training if the study prunes it.

    `last` is the value of the last evaluation, on the main process.
    """

    def __init__(self, study: SharedStudy, objective: SearchObjective) -> None:
        super().__init__()
        self._study, self._objective = study, objective
        self.last: float | None = None
        self._evaluation = 0

    def on_evaluation_end(self) -> None:
        # Evaluations before the first step, and evaluations by a callback in between, have no number: skip them.
        decisions = self.trainer.decisions
        evaluation = decisions[-1].progress.evaluation if decisions else 0
        if evaluation == self._evaluation:
            return
        self._evaluation = evaluation
        if self._study.report(evaluation, self._measure):
            raise load_optuna().TrialPruned(f"pruned after evaluation {evaluation}")

    def _measure(self) -> float:
        self.last = self._objective.current(self.trainer)
        return self.last


def run_trial(
    experiment: Experiment, study: SharedStudy, number: int, hps: HyperParameters, arguments: Mapping[str, Any]
) -> TrialOutcome:
    """Run one training and return its outcome: the same on all processes, once all have ended.

    Args:
        experiment: The parts that all trials share.
        study: The study that asked for the trial.
        number: The number of the trial in the study.
        hps: The values to try.
        arguments: Arguments of the trainer, copied for this trial.

    Raises:
        RuleError: If a rule in the arguments is wrong, which does not depend on the values.
        SameModel: If the module's model is not new.
        EndedAlone: If this process has ended the trial and the others have not.
    """
    objective = experiment.objective
    reporter = Reporter(study, objective)
    callbacks: list[Callback] = [*arguments["callback"], reporter]
    outcome = TrialOutcome(TrialState.COMPLETE)
    experiment.datasets.reset()
    with _folder(experiment.model_path, number) as folder:
        try:
            trainer = Trainer(hps, folder, **{**_named(arguments, study.name, number), "callback": callbacks})
            if objective.rule is not None:
                trainer.register_model_saving(objective.rule)
            trainer.fit(experiment.modules.make(), experiment.train_dataset, experiment.val_dataset)
        except load_optuna().TrialPruned as pruned:
            outcome = TrialOutcome(TrialState.PRUNED, error=str(pruned))
        except (RuleError, SameModel):
            raise
        except PeerFailed:
            outcome = TrialOutcome(TrialState.FAILED, error="another process failed")
        except Exception as error:
            outcome = failed(error)
        outcome = common_outcome(outcome, f"trial {number} of {study.name}")
    for callback in callbacks:  # a reference cycle with the trainer must not delay the release of the module
        callback.module = None  # type: ignore[assignment]  # as it is before a training
    if outcome.state is not TrialState.COMPLETE:
        return outcome
    return from_main(lambda: _valued(trainer, objective, reporter.last))


def failed(error: Exception) -> TrialOutcome:
    """Return the outcome of a trial that raised: the error in one line, with its notes, and the traceback."""
    lines = [f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())]
    details = "".join(traceback.format_exception(error))
    return TrialOutcome(TrialState.FAILED, error=" ".join("; ".join(lines).split()), details=details)


def _named(arguments: Mapping[str, Any], study: str, number: int) -> dict[str, Any]:
    """Return the trainer's arguments, set to track all trials of a study as numbered runs of one experiment."""
    if not arguments.get("log_with"):
        return dict(arguments)
    config = {"study": study, "trial": number, **(arguments.get("additional_tracker_config") or {})}
    return {"track_name": study, **arguments, "additional_tracker_config": config}


def _valued(trainer: Trainer, objective: SearchObjective, last: float | None) -> TrialOutcome:
    try:
        return TrialOutcome(TrialState.COMPLETE, objective.final(trainer, last))
    except Exception as error:
        return failed(error)


@contextmanager
def _folder(model_path: Path | None, number: int) -> Iterator[Path]:
    """Yield the folder of a trial: its own below `model_path`, or a temporary one."""
    if model_path is not None:
        yield model_path / f"trial-{number:05d}"
        return
    made = Path(from_main(lambda: tempfile.mkdtemp(prefix="accmt-trial-")))
    try:
        yield made
    finally:
        if PartialState().is_main_process and not (made / OUTBOX).exists():  # something unsent stays
            shutil.rmtree(made, ignore_errors=True)

"""The start of the trackers of a training, on its main process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from accmt.config.errors import ConfigError, Problem
from accmt.tracking import mlflow
from accmt.tracking.accelerate import FOLDER, TENSORBOARD, AccelerateTracker, TensorBoardTracker
from accmt.tracking.background import BackgroundTracker, MultiTracker
from accmt.tracking.choice import MLFLOW
from accmt.tracking.tracker import Beginning, NoTracker, Tracker


def start_trackers(
    trackers: Mapping[str, Mapping[str, Any]], beginning: Beginning, warn: Callable[[str], None]
) -> Tracker:
    """Begin a run in every tracker, or continue the former one.

    Args:
        trackers: Tracker -> the arguments of its run.
        beginning: What they are told.
        warn: Takes a warning.

    Raises:
        ConfigError: A tracker refuses a new training. One that is continued goes on without that tracker.
    """
    started: list[BackgroundTracker] = []
    for name, arguments in trackers.items():
        former = {name: beginning.former[name]} if name in beginning.former else {}
        tracker = BackgroundTracker(name, _maker(name, arguments, beginning), warn, former)
        try:
            tracker.start(may_be_late=name == MLFLOW and mlflow.is_address(beginning.location))
        except Exception as error:
            problem = f"{name} cannot be used: {type(error).__name__}: {error}"
            if beginning.step is None:
                for other in started:
                    other.close("FAILED")
                raise ConfigError([Problem("log_with", problem)], "fit(...)") from error
            warn(f"{problem}; the training goes on without it")
        started.append(tracker)
    return MultiTracker(started) if len(started) > 1 else started[0] if started else NoTracker()


def _maker(name: str, arguments: Mapping[str, Any], beginning: Beginning) -> Callable[[], Tracker]:
    if name == MLFLOW:
        mlflow.load()
        return lambda: mlflow.MlflowTracker(
            *(beginning.location, beginning.experiment, beginning.parameters, beginning.former.get(MLFLOW)), **arguments
        )
    if mlflow.is_address(beginning.location):
        beginning = replace(beginning, location=FOLDER)
    if name == TENSORBOARD:
        return partial(TensorBoardTracker, beginning, arguments)
    return partial(AccelerateTracker, name, beginning, arguments)

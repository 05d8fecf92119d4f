"""The trackers that Accelerate knows, behind our interface. A tool is imported when it is used."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from accmt.tracking.segment import Recipient
from accmt.tracking.tracker import Beginning, NoArtifacts, Status, Tracker, plain

TENSORBOARD = "tensorboard"
FOLDER = "logs"
ARTIFACTS = "artifacts"


@dataclass(frozen=True, slots=True)
class Tool:
    """What is particular to a tool.

    Attributes:
        module, init: Where the function or class is found that begins a run and takes the arguments of a run.
        ours: Its arguments that the trainer gives -> the argument of the trainer that they come from.
        run_name: Its argument for the name of a run.
        folder: Its argument for a folder, if Accelerate does not give it one.
        to_continue: A run -> the arguments with which a later process continues it.
        finish: Ends a run with its status, before Accelerate does without.
    """

    module: str
    init: str
    ours: Mapping[str, str]
    run_name: str | None = None
    folder: str | None = None
    to_continue: Callable[[Any], dict[str, Any]] = lambda run: {}
    finish: Callable[[Any, Status], None] = lambda run, status: None


TOOLS = {
    TENSORBOARD: Tool("torch.utils.tensorboard", "SummaryWriter", {"log_dir": "logging_dir"}, "run_name"),
    "wandb": Tool(
        *("wandb", "init", {"project": "track_name"}, "name", "dir"),
        to_continue=lambda run: {"id": run.id, "resume": "allow"},
        finish=lambda run, status: run.finish(exit_code=int(status != "FINISHED")),
    ),
    "trackio": Tool(
        *("trackio", "init", {"project": "track_name"}, "name"),
        to_continue=lambda run: {"name": run.name, "resume": "allow"},
    ),
    "swanlab": Tool(
        *("swanlab", "init", {"project": "track_name"}, "name", "log_dir"),
        to_continue=lambda run: {"id": run.id, "resume": "allow"},
    ),
    "comet_ml": Tool(
        *("comet_ml", "start", {"project_name": "track_name"}),
        to_continue=lambda experiment: {"experiment_key": experiment.get_key()},
    ),
    "aim": Tool("aim", "Run", {"repo": "logging_dir"}, to_continue=lambda run: {"run_hash": run.hash}),
    "clearml": Tool(
        *("clearml", "Task.init", {"project_name": "track_name"}, "task_name"),
        to_continue=lambda task: {"continue_last_task": task.id},
    ),
    "dvclive": Tool("dvclive", "Live", {}, "exp_name", "dir", lambda live: {"resume": True}),
}


class AccelerateTracker:
    """One of the trackers of Accelerate.

    Args:
        name: Its name there.
        beginning: What it is told; its `former[name]` are the arguments with which the former run is continued.
        arguments: The arguments of the run, for the tool.
    """

    def __init__(self, name: str, beginning: Beginning, arguments: Mapping[str, Any]) -> None:
        self.name = name
        self._tool = TOOLS.get(name, Tool("", "", {}))
        self._former: Mapping[str, Any] | None = beginning.former.get(name)
        project, given = self._run(beginning, dict(arguments))
        kind = LOGGER_TYPE_TO_CLASS[name]
        places = [project, beginning.location] if kind.requires_logging_directory else [project]
        self._tracker = kind(*places, **given)
        # This is the main process; and the last call may come when the processes have parted already.
        self._tracker.main_process_only = False
        self._tracker.start()
        self._state = self._to_continue()
        if self._former is None:
            self._tracker.store_init_configuration(plain(beginning.parameters))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._tracker.log(dict(values), step=step)

    def log_artifact(self, path: Path) -> None:
        raise NoArtifacts("only MLflow and TensorBoard keep artifacts")

    def log_artifacts(self, folder: Path) -> None:
        raise NoArtifacts("only MLflow and TensorBoard keep artifacts")

    def state(self) -> dict[str, Any]:
        return {self.name: self._state}

    def close(self, status: Status, time: int | None = None) -> None:
        self._tool.finish(self._tracker.tracker, status)
        self._tracker.finish()

    def _run(self, beginning: Beginning, given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The project and the arguments for the tool."""
        tool = self._tool
        if tool.run_name is not None and "run_name" in given:
            given[tool.run_name] = given.pop("run_name")
        if tool.folder is not None and tool.folder not in given:
            folder = Path(beginning.location, beginning.experiment)
            folder.mkdir(parents=True, exist_ok=True)
            given[tool.folder] = str(folder)
        return beginning.experiment, {**given, **(self._former or {})}

    def _to_continue(self) -> dict[str, Any]:
        return self._tool.to_continue(self._tracker.tracker)


class TensorBoardTracker(AccelerateTracker):
    """TensorBoard: a new training has a folder of its own, and one that is continued goes on in its folder.

    There TensorBoard hides what was logged after the checkpoint, as it is logged again. Artifacts are copied to the
    folder `artifacts` beside the values.
    """

    def __init__(self, beginning: Beginning, arguments: Mapping[str, Any]) -> None:
        self._folder = ""
        self._location = Path(beginning.location)
        super().__init__(TENSORBOARD, beginning, arguments)

    def log_artifact(self, path: Path) -> None:
        artifacts = self._location / self._folder / ARTIFACTS
        artifacts.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, artifacts)

    def log_artifacts(self, folder: Path) -> None:
        shutil.copytree(folder, self._location / self._folder / ARTIFACTS, dirs_exist_ok=True)

    def _run(self, beginning: Beginning, given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        name = given.pop("run_name", None)
        if self._former is None:
            project = beginning.experiment
            self._folder = _unused(self._location, project if name is None else f"{project}/{name}")
            return self._folder, given
        self._folder = self._former["folder"]
        purged = {} if beginning.step is None else {"purge_step": beginning.step + 1}
        return self._folder, {**purged, **given}

    def _to_continue(self) -> dict[str, Any]:
        return {"folder": self._folder}


def tracker_for(recipient: Recipient, arguments: Mapping[str, Any] | None, run: Any, step: int | None) -> Tracker:
    """The tracker of an outbox.

    Args:
        recipient: Whom the outbox is for.
        arguments: The arguments of the run, for the tool; None if they are not known any more.
        run: A run to continue, from `state()`; None for a new one.
        step: The step of the checkpoint that a training is continued from; None in all other cases.

    Raises:
        ValueError: Without a training there is no such tracker, or it cannot begin a run.
    """
    name = recipient.tracker
    if name not in LOGGER_TYPE_TO_CLASS:
        raise ValueError(f"'{name}' is a tracker that the training registered: continue the training")
    if arguments is None and run is None:
        raise ValueError("the arguments of the run are objects that only the training has: continue the training")
    PartialState()  # Accelerate's trackers write to its log, which does not work without
    former = {} if run is None else {name: run}
    beginning = Beginning(recipient.location, recipient.experiment, recipient.parameters, former, step)
    kind = TensorBoardTracker if name == TENSORBOARD else partial(AccelerateTracker, name)
    return kind(beginning, arguments or {})


def _unused(location: Path, name: str) -> str:
    """The name, or with a number behind it the first in whose folder no training has logged."""
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return next(name for name in names if not any((location / name).glob("events.out.tfevents.*")))

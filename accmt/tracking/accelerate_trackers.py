"""Adapters for the trackers of Accelerate. A tool is imported when it is used."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from operator import attrgetter, methodcaller
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from accmt.files.durable import replacing
from accmt.files.foreign import below
from accmt.tracking.records import Recipient
from accmt.tracking.tracker import Beginning, NoArtifacts, Status, Tracker, plain_parameters

TENSORBOARD = "tensorboard"
FOLDER = "logs"
ARTIFACTS = "artifacts"


@dataclass(frozen=True, slots=True)
class Tool:
    """Specifics of a tool.

    Attributes:
        module, init: Location of the function or class that begins a run and takes its arguments.
        ours: Its arguments that the trainer sets -> the argument of the trainer that they come from.
        run_name: Its argument for the name of a run.
        folder: Its argument for a folder, if Accelerate does not give it one.
        to_continue: Each argument with which a later process resumes a run -> its value, from the run.
        finish: Ends a run with its status, before Accelerate ends it without one.
    """

    module: str
    init: str
    ours: Mapping[str, str]
    run_name: str | None = None
    folder: str | None = None
    to_continue: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    finish: Callable[[Any, Status], None] = lambda run, status: None


TOOLS = {
    TENSORBOARD: Tool("torch.utils.tensorboard", "SummaryWriter", {"log_dir": "logging_dir"}, "run_name"),
    "wandb": Tool(
        *("wandb", "init", {"project": "track_name"}, "name", "dir"),
        to_continue={"id": attrgetter("id"), "resume": lambda run: "allow"},
        finish=lambda run, status: run.finish(exit_code=int(status != "FINISHED")),
    ),
    "trackio": Tool(
        *("trackio", "init", {"project": "track_name"}, "name"),
        to_continue={"name": attrgetter("name"), "resume": lambda run: "allow"},
    ),
    "swanlab": Tool(
        *("swanlab", "init", {"project": "track_name"}, "name", "log_dir"),
        to_continue={"id": attrgetter("id"), "resume": lambda run: "allow"},
    ),
    "comet_ml": Tool(
        *("comet_ml", "start", {"project_name": "track_name"}),
        to_continue={"experiment_key": methodcaller("get_key")},
    ),
    "aim": Tool(
        *("aim", "Run", {"repo": "logging_dir"}),
        to_continue={"run_hash": attrgetter("hash")},
    ),
    "clearml": Tool(
        *("clearml", "Task.init", {"project_name": "track_name"}, "task_name"),
        to_continue={"continue_last_task": attrgetter("id")},
    ),
    "dvclive": Tool(
        *("dvclive", "Live", {}, "exp_name", "dir"),
        to_continue={"resume": lambda live: True},
    ),
}


class AccelerateTracker:
    """Tracker of Accelerate.

    Args:
        name: Its name in Accelerate.
        beginning: The facts of the training; `former[name]` are the arguments that resume the former run.
        arguments: The arguments of the run, for the tool.
    """

    def __init__(self, name: str, beginning: Beginning, arguments: Mapping[str, Any]) -> None:
        self.name = name
        self._tool = TOOLS.get(name, Tool("", "", {}))
        self._former = _run_to_continue(name, beginning.former.get(name))
        project, given = self._run(beginning, dict(arguments))
        kind = LOGGER_TYPE_TO_CLASS[name]
        places = [project, beginning.location] if kind.requires_logging_directory else [project]
        self._tracker = kind(*places, **given)
        # This is the main process, and the last call may come after the process group has ended.
        self._tracker.main_process_only = False
        self._tracker.start()
        self._state = self._to_continue()
        if self._former is None:
            self._tracker.store_init_configuration(plain_parameters(beginning.parameters))

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
        """Return the project and the arguments for the tool."""
        tool = self._tool
        if tool.run_name is not None and "run_name" in given:
            given[tool.run_name] = given.pop("run_name")
        if tool.folder is not None and tool.folder not in given:
            folder = below(Path(beginning.location), beginning.experiment)
            folder.mkdir(parents=True, exist_ok=True)
            given[tool.folder] = str(folder)
        return beginning.experiment, {**given, **(self._former or {})}

    def _to_continue(self) -> dict[str, Any]:
        return {name: value(self._tracker.tracker) for name, value in self._tool.to_continue.items()}


class TensorBoardTracker(AccelerateTracker):
    """TensorBoard: a new training gets its own folder, and a resumed one continues in its folder.

    There TensorBoard hides values logged after the checkpoint, as they are logged again. Artifacts are copied to the
    folder `artifacts` next to the values.
    """

    def __init__(self, beginning: Beginning, arguments: Mapping[str, Any]) -> None:
        self._folder = ""
        self._location = Path(beginning.location)
        super().__init__(TENSORBOARD, beginning, arguments)

    def log_artifact(self, path: Path) -> None:
        _copy(path, self._artifacts() / Path(path).name)

    def log_artifacts(self, folder: Path) -> None:
        shutil.copytree(folder, self._artifacts(), dirs_exist_ok=True, copy_function=_copy)

    def _artifacts(self) -> Path:
        """Create the folder of the artifacts.

        Raises:
            ValueError: The folder, or one in it, is a link.
        """
        artifacts = below(self._location, f"{self._folder}/{ARTIFACTS}")
        artifacts.mkdir(parents=True, exist_ok=True)
        for place, folders, _ in os.walk(artifacts):
            for name in folders:
                below(artifacts, os.path.relpath(os.path.join(place, name), artifacts))
        return artifacts

    def _run(self, beginning: Beginning, given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        name = given.pop("run_name", None)
        if self._former is None:
            project = beginning.experiment
            self._folder = _unused(self._location, project if name is None else f"{project}/{name}")
            return self._folder, given
        self._folder = str(self._former["folder"])
        below(self._location, self._folder)
        purged = {} if beginning.step is None else {"purge_step": beginning.step + 1}
        return self._folder, {**purged, **given}

    def _to_continue(self) -> dict[str, Any]:
        return {"folder": self._folder}


def accelerate_tracker_for(
    recipient: Recipient, arguments: Mapping[str, Any] | None, run: Any, step: int | None
) -> Tracker:
    """Create the tracker of an outbox.

    Args:
        recipient: The recipient of the outbox.
        arguments: The arguments of the run, for the tool; None if they are no longer known.
        run: A run to resume, from `state()`; None for a new one.
        step: The step of the checkpoint that a training resumes from; None in all other cases.

    Raises:
        ValueError: Only the training itself can create this tracker, or begin its run.
    """
    name = recipient.tracker
    if name not in LOGGER_TYPE_TO_CLASS:
        raise ValueError(f"'{name}' is a tracker that the training registered: continue the training")
    if arguments is None and run is None:
        raise ValueError("the arguments of the run are objects that only the training has: continue the training")
    PartialState()  # Accelerate's trackers write to its log, which needs this
    former = {} if run is None else {name: run}
    beginning = Beginning(recipient.location, recipient.experiment, recipient.parameters, former, step)
    kind = TensorBoardTracker if name == TENSORBOARD else partial(AccelerateTracker, name)
    return kind(beginning, arguments or {})


def refuse_places(recipient: Recipient) -> None:
    """Check that the arguments of a run in an outbox do not override the destination of the outbox.

    Raises:
        ValueError: They do.
    """
    tool = TOOLS.get(recipient.tracker)
    places = [] if tool is None else [*tool.ours, tool.folder, "settings", "base_url", "host", "url"]
    found = [name for name in recipient.arguments or {} if name in places]
    if found:
        raise ValueError(f"the arguments of the run say where it goes, by {', '.join(found)}: continue the training")


def _unused(location: Path, name: str) -> str:
    """Return the name, with a number appended if a training has logged into its folder."""
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return next(name for name in names if not any(below(location, name).glob("events.out.tfevents.*")))


def _copy(source: str | Path, target: str | Path) -> None:
    """Copy a file, replacing the target, even if that is a link."""
    with replacing(Path(target)) as temporary:
        shutil.copy2(source, temporary)


def _run_to_continue(name: str, run: Any) -> dict[str, Any] | None:
    """Validate a run to resume from a checkpoint or an outbox.

    Raises:
        ValueError: No training writes such a run.
    """
    if run is None:
        return None
    allowed = {"folder"} if name == TENSORBOARD else TOOLS[name].to_continue.keys() if name in TOOLS else set()
    kinds = isinstance(run, Mapping) and all(type(value) in (str, bool) for value in run.values())
    if not kinds or set(run) != allowed:
        raise ValueError(f"{name} cannot continue the run {run!r:.100}: a training does not write this")
    return dict(run)

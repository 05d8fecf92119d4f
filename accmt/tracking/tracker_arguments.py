"""Arguments for trackers, validated before any run begins, and the places that trackers write to."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from functools import reduce
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from accmt.config.errors import Problem, argument_meant, did_you_mean, must_be
from accmt.config.other_names import MEANT
from accmt.earlier import former
from accmt.rules.errors import nearest
from accmt.tracking.accelerate_trackers import ARTIFACTS, FOLDER, TENSORBOARD, TOOLS
from accmt.tracking.mlflow import NAME as MLFLOW
from accmt.tracking.mlflow import RUN_ARGUMENTS, STORE, is_address

_ALSO = {TENSORBOARD: "tensorboardX"}
_WANTED: dict[str, tuple[type, str]] = {
    "run_name": (str, "a string"),
    "tags": (Mapping, "a dictionary"),
    "description": (str, "a string"),
    "start_time": (int, "a whole number of milliseconds since 1970"),
}

TrackerArguments = dict[str, dict[str, Any]]


def known_trackers() -> tuple[str, ...]:
    """Return the names for `log_with`: MLflow, and the trackers that Accelerate has or that were registered there."""
    return (MLFLOW, *sorted(name for name in LOGGER_TYPE_TO_CLASS if name != MLFLOW))


def choose_trackers(
    log_with: Any, location: str, given: Mapping[str, Any], own: Sequence[str]
) -> tuple[TrackerArguments, list[Problem]]:
    """Choose the requested trackers and their arguments.

    Args:
        log_with: A name, a list of names, or None.
        location: `logging_dir`.
        given: Keyword arguments that the trainer does not know: each is passed to the trackers that accept it; a
            dictionary with the name of a tracker is passed to that tracker alone.
        own: The arguments of the trainer, for suggestions.

    Returns:
        Tracker -> the arguments of its run, and all problems.
    """
    names, problems = _names(log_with)
    if problems:
        return {}, problems + [answer for key in given if (answer := _answer(key))]
    if not names:
        return {}, [_without_tracker(name, own) for name in given]
    arguments, problems = _divided(names, given, own)
    return arguments, problems + _value_problems(arguments.get(MLFLOW, {})) + _place_problems(names, location)


def _divided(
    names: Sequence[str], given: Mapping[str, Any], own: Sequence[str]
) -> tuple[TrackerArguments, list[Problem]]:
    taken = {name: _accepted(name) if given else () for name in names}
    arguments: TrackerArguments = {name: {} for name in names}
    problems: list[Problem] = []
    for key, value in given.items():
        if key in names and isinstance(value, Mapping):
            problems += [
                Problem(f"{key}.{inner}", f"unknown argument{did_you_mean(str(inner), taken[key] or ())}")
                for inner in value
                if not _takes(key, str(inner), taken)
            ]
            arguments[key] |= value
            continue
        takers = [name for name in names if _takes(name, key, taken)]
        if all(taken[name] is None for name in takers) and (_answer(key) or key in MEANT or nearest(key, own)):
            takers = []  # they accept anything, and this is more likely a misspelling
        for name in takers:
            arguments[name].setdefault(key, value)
        if not takers:
            problems.append(_unknown(key, taken, own))
    return arguments, problems


def _names(log_with: Any) -> tuple[list[str], list[Problem]]:
    listed = list(log_with) if isinstance(log_with, list | tuple) else [] if log_with is None else [log_with]
    known, names, problems = known_trackers(), [], []
    for entry in listed:
        name = entry.value if isinstance(entry, Enum) else entry
        if not isinstance(name, str):
            kind = name if isinstance(name, type) else type(name)
            text = must_be("the name of a tracker, a list of names, or None", name)
            text += f": give log_with='{MLFLOW}'" if kind.__name__.casefold() == MLFLOW else ""
            problems.append(Problem("log_with", text))
        elif name not in known:
            text = f"unknown tracker '{name}'{did_you_mean(name, known)} Allowed are {', '.join(known)}, or None"
            problems.append(Problem("log_with", text))
        elif not _is_installed(name):
            problems.append(Problem("log_with", f"'{name}' is not installed: pip install {name}"))
        elif name not in names:
            names.append(name)
    return names, problems


def _is_installed(name: str) -> bool:
    if name != MLFLOW and name not in TOOLS:
        return True  # registered by the user
    return any(find_spec(module) is not None for module in (name, *([_ALSO[name]] if name in _ALSO else [])))


def _accepted(name: str) -> Sequence[str] | None:
    """Return the arguments that a run accepts; None if they are not known."""
    if name == MLFLOW:
        return RUN_ARGUMENTS
    tool = TOOLS.get(name)
    if tool is None:
        kind = LOGGER_TYPE_TO_CLASS[name]
        return _parameters(kind.__init__, 3 if kind.requires_logging_directory else 2)
    try:
        init = reduce(getattr, tool.init.split("."), import_module(tool.module))
    except (ImportError, AttributeError):
        return None
    accepted = _parameters(init, 0)
    if accepted is None:
        return None
    names = [key for key in accepted if key not in (*tool.ours, "self")]
    return names if tool.run_name is None else [*names, "run_name"]


def _parameters(function: Any, ours: int) -> Sequence[str] | None:
    """Return the names of a function's parameters after the first `ours`; None if it accepts any."""
    parameters = list(inspect.signature(function).parameters.values())
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [parameter.name for parameter in parameters[ours:]]


def _takes(name: str, key: str, taken: Mapping[str, Sequence[str] | None]) -> bool:
    accepted = taken[name]
    if accepted is None:
        return name not in TOOLS or key not in TOOLS[name].ours
    return key in accepted


def _unknown(key: str, taken: Mapping[str, Sequence[str] | None], own: Iterable[str]) -> Problem:
    if (answer := _answer(key)) is not None:
        return answer
    for name in taken:
        if name in TOOLS and key in TOOLS[name].ours:
            return Problem(key, f"{name} gets it from {TOOLS[name].ours[key]}: give that instead")
    allowed = [*own, *(argument for accepted in taken.values() for argument in accepted or ())]
    return Problem(key, f"unknown argument{argument_meant(key, allowed)}")


def _without_tracker(key: str, own: Iterable[str]) -> Problem:
    if key in (*RUN_ARGUMENTS, *known_trackers()):
        return Problem(key, "is for a tracker, and there is none: give log_with")
    return _unknown(key, {}, own)


def _answer(key: str) -> Problem | None:
    """Explain an argument of earlier versions; None for others."""
    text = former(key)
    return None if text is None else Problem(key, text)


def _value_problems(arguments: Mapping[str, Any]) -> list[Problem]:
    """List the values that MLflow cannot use."""
    wanted = {key: _WANTED[key] for key in arguments if key in _WANTED}
    return [
        Problem(key, must_be(text, arguments[key]))
        for key, (kind, text) in wanted.items()
        if not isinstance(arguments[key], kind)
    ]


def _place_problems(names: Sequence[str], location: str) -> list[Problem]:
    """Report a location that none of the trackers can use."""
    if MLFLOW in names or location == FOLDER:
        return []
    writing = [name for name in names if writes(name)]
    if not writing:
        return [Problem("logging_dir", f"{' and '.join(names)} would not use it: leave it out")]
    if is_address(location):
        return [Problem("logging_dir", f"'{location}' is an address, and {' and '.join(writing)} needs a folder")]
    return []


def name_problems(trackers: Mapping[str, Mapping[str, Any]], track_name: str) -> list[Problem]:
    """List names that lead out of `logging_dir`, if a tracker writes to a folder of that name."""
    writing = [tracker for tracker in trackers if writes(tracker)]
    names = [("track_name", track_name)] if writing else []
    names += [("run_name", trackers[tracker]["run_name"]) for tracker in writing if "run_name" in trackers[tracker]]
    problems = [
        Problem(place, f"'{name}' would lead out of logging_dir: give a name without '..' that does not begin with '/'")
        for place, name in names
        if isinstance(name, str) and (".." in Path(name).parts or Path(name).is_absolute())
    ]
    return list(dict.fromkeys(problems))


def writes(name: str) -> bool:
    """Return whether a tracker writes to a folder named after the experiment."""
    tool = TOOLS.get(name)
    return bool(LOGGER_TYPE_TO_CLASS[name].requires_logging_directory) or (tool is not None and tool.folder is not None)


def places_of(
    trackers: Mapping[str, Mapping[str, Any]], location: str, folder: str, track_name: str
) -> tuple[Path, ...]:
    """List the files and folders that the trackers of a training write to.

    Args:
        trackers: Tracker -> the arguments of its run.
        location: `logging_dir`.
        folder: The folder of trackers that cannot use an address.
        track_name: The name of the experiment.
    """
    places: list[Path] = []
    for name, arguments in trackers.items():
        if name == MLFLOW:
            places += [] if is_address(location) else [Path(location, STORE), Path(location, ARTIFACTS)]
        elif writes(name):
            run = arguments.get("run_name") if name == TENSORBOARD else None
            place = Path(folder if is_address(location) else location, track_name, run if isinstance(run, str) else "")
            places += [place, place / ARTIFACTS] if name == TENSORBOARD else [place]
    return tuple(places)


def names_in(folder: Path, places: Iterable[Path]) -> frozenset[str]:
    """Return the first path component below a folder of each place inside it."""
    above = os.path.realpath(folder)
    inside = (Path(os.path.realpath(place)) for place in places)
    return frozenset(
        place.relative_to(above).parts[0] for place in inside if place.is_relative_to(above) and str(place) != above
    )

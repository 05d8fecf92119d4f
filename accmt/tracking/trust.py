"""Checks of what may be sent, and where to, from an outbox that someone else may have written.

A destination is used only if the caller names it, and an artifact is sent if it is in the folder of the training.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from accmt.files.foreign import problem_of_content
from accmt.rules.printable import masked
from accmt.tracking import mlflow
from accmt.tracking.records import Artifact, Recipient

ENVIRONMENT = "MLFLOW_TRACKING_URI"
_FILES = ("file://", "sqlite:///")
_BY_PLACE_ALONE = (mlflow.NAME, "tensorboard")


@dataclass(frozen=True, slots=True)
class Allowed:
    """Destinations and artifacts that the caller allows.

    Attributes:
        destinations: Addresses, folders, and names of trackers that find their own server.
        artifacts: Files, and folders from which files may be sent, besides the folder of the training.
    """

    destinations: tuple[str, ...] = ()
    artifacts: tuple[Path, ...] = ()


def names_of(tracker: str, location: str) -> tuple[str, ...]:
    """Return the names that allow the sending of an outbox to its destination."""
    return (masked(location),) if tracker in _BY_PLACE_ALONE else (tracker, masked(location))


def destination_of(recipient: Recipient, allowed: Allowed) -> str | None:
    """Return the allowed destination, with any password given; None if neither caller nor environment names it."""
    named = list(allowed.destinations)
    if recipient.tracker == mlflow.NAME and ENVIRONMENT in os.environ:
        named.append(os.environ[ENVIRONMENT])
    if recipient.tracker not in (*_BY_PLACE_ALONE, *allowed.destinations):
        return None
    found = next((place for place in named if _same(place) == _same(recipient.location)), None)
    return found if found is None or mlflow.is_address(recipient.location) else recipient.location


def problem_of_artifact(model_path: Path, allowed: tuple[Path, ...], artifact: Artifact) -> str | None:
    """Describe why an artifact may not be sent; None if it may."""
    problem = problem_of_content(model_path, artifact.path)
    for allowed_path in allowed:
        absolute = Path(os.path.abspath(allowed_path.expanduser()))
        folder = absolute.parent if absolute == artifact.path else absolute
        if problem is None or problem_of_content(folder, artifact.path) is None:
            return None
    return problem


def _same(location: str) -> str:
    """Normalize a location, so that different spellings of it are equal."""
    if location.startswith(_FILES):
        file = Path(unquote(urlsplit(location).path if location.startswith("file") else location[len("sqlite:///") :]))
        return os.path.realpath(file.parent if file.name == mlflow.STORE else file)
    if mlflow.is_address(location):
        address = masked(location if "://" in location else f"http://{location}")
        scheme, _, rest = address.partition("://")
        host, slash, path = rest.partition("/")
        return f"{scheme}://{host}".lower() + f"{slash}{path}".rstrip("/")
    return os.path.realpath(Path(location).expanduser())

"""Files and folders that trackers write to, so that none of them collides with files of the training."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from accmt.tracking.accelerate import ARTIFACTS, TENSORBOARD
from accmt.tracking.choice import writes
from accmt.tracking.mlflow import NAME as MLFLOW
from accmt.tracking.mlflow import STORE, is_address


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

"""Opens the history of a training, whatever it was recorded by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from accmt.cli.arguments import CommandError, MetricArgument, UsageError
from accmt.cli.output import complain
from accmt.cli.replay.csv import open_table
from accmt.cli.replay.logs import log_in
from accmt.cli.replay.source import Source
from accmt.cli.replay.training import open_training
from accmt.tracking.journal import DECISIONS, HISTORY, REPLICATES

_T = TypeVar("_T")

MLFLOW = "mlflow:"
_DEPTH = 4


def open_source(
    name: str, metrics: Sequence[MetricArgument], datasets: Sequence[str], tracking_uri: str | None
) -> Source:
    """Read the source according to its kind.

    Raises:
        CommandError: If it cannot be read, or is not a source.
        UsageError: If an option does not fit this kind of source.
    """
    if name.startswith(MLFLOW):
        from accmt.cli.replay.mlflow import open_run  # slow: it imports pydantic

        return open_run(name.removeprefix(MLFLOW), tracking_uri, metrics, datasets)
    if tracking_uri is not None:
        raise UsageError(f"--tracking-uri is only for {MLFLOW}RUN_ID, and {name} is not one")
    if (metric := next((metric for metric in metrics if metric.datasets), None)) is not None:
        raise UsageError(
            f"--metric {metric.name}: its datasets are those in the source; leave out '@' and what follows"
        )
    place = Path(name)
    log = None if (place / HISTORY).is_file() else log_in(place)
    if log is not None:
        return log(metrics, datasets)
    if datasets:
        raise UsageError(f"--dataset is only for {MLFLOW}RUN_ID and logs of other trainers, and {name} is not one")
    if place.is_dir():
        return open_training(place, metrics)
    if not place.exists():
        raise CommandError(f"{name} does not exist")
    if place.name in (HISTORY, REPLICATES, DECISIONS):
        raise CommandError(f"{name} is a file of a training: give the training's folder, {place.parent}")
    return open_table(place, metrics)


def read_all(given: Sequence[str], read: Callable[[str], _T]) -> Iterator[tuple[str, _T]]:
    """Yield the sources that are given, or are in folders that are given, by name, each once. What cannot be read is
    said, and left out if there is more than one.

    Raises:
        CommandError: There is none.
    """
    names = [name for one in given for name in sources_in(one)]
    found = {name if name.startswith(MLFLOW) else str(Path(name).resolve()): name for name in names}
    if not found:
        raise CommandError(f"no training was found in {', '.join(given)}")
    count = 0
    for name in found.values():
        try:
            yield name, read(name)
            count += 1
        except CommandError as error:
            if len(found) == 1:
                raise
            complain(f"left out: {error}")
    if not count:
        raise CommandError("none of the trainings can be read")


def sources_in(name: str, depth: int = _DEPTH) -> Iterator[str]:
    """Yield the sources in a folder that is not one itself, in order of their names; any other source as it is."""
    place = Path(name)
    if name.startswith(MLFLOW) or not place.is_dir() or (place / HISTORY).is_file() or log_in(place) is not None:
        yield name
    elif depth:
        folders = (path for path in sorted(place.iterdir()) if path.is_dir() and not path.is_symlink())
        for folder in folders:
            yield from sources_in(str(folder), depth - 1)

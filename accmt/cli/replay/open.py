"""Opening of a replay's source according to its kind."""

from __future__ import annotations

import argparse
from pathlib import Path

from accmt.cli.arguments import CommandError, UsageError
from accmt.cli.replay.csv import open_table
from accmt.cli.replay.source import Source
from accmt.cli.replay.training import open_training
from accmt.tracking.journal import DECISIONS, HISTORY

MLFLOW = "mlflow:"


def open_source(options: argparse.Namespace) -> Source:
    """Read the source that a command was given.

    Raises:
        CommandError: If it cannot be read, or is not a source.
        UsageError: If an option does not fit this kind of source.
    """
    name: str = options.source
    if name.startswith(MLFLOW):
        from accmt.cli.replay.mlflow import open_run  # slow: it imports pydantic

        return open_run(name.removeprefix(MLFLOW), options.tracking_uri, options.metrics, options.datasets)
    _refuse_options_of_mlflow(options)
    path = Path(name)
    if path.is_dir():
        return open_training(path, options.metrics)
    if not path.exists():
        raise CommandError(f"{name}: there is no such folder or file")
    if path.name in (HISTORY, DECISIONS):
        raise CommandError(f"{name} is a file of a training: give the training's folder, {path.parent}")
    return open_table(path, options.metrics)


def _refuse_options_of_mlflow(options: argparse.Namespace) -> None:
    if options.tracking_uri is not None or options.datasets:
        name = "--dataset" if options.datasets else "--tracking-uri"
        raise UsageError(f"{name} is only for {MLFLOW}RUN_ID, and {options.source} is not one")
    for metric in options.metrics:
        if metric.datasets:
            raise UsageError(
                f"--metric {metric.name}: its datasets are those in the source; leave out '@' and what follows"
            )

"""History of a training from an MLflow run. MLflow is imported when a run is read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accmt.cli.arguments import CommandError, MetricArgument, UsageError
from accmt.cli.output import complain
from accmt.cli.replay.rules import given_facts
from accmt.cli.replay.source import Source
from accmt.report.training import Curve, TrainingReport
from accmt.rules import Length, Observation, Progress
from accmt.rules.printable import escaped
from accmt.rules.replay import History, Need
from accmt.rules.store import VALID_LOSS
from accmt.tracking.mlflow import is_address, metric_name, quietly, sqlite_address

if TYPE_CHECKING:
    from mlflow import MlflowClient

_VAL_LOSS = "val_loss"
_EPOCH = "epoch"
_MOST_RUNS = 50

MetricHistory = dict[int, dict[str, dict[str, float]]]
"""Step -> dataset -> metric -> value."""


def open_run(run_id: str, location: str | None, metrics: Sequence[MetricArgument], datasets: Sequence[str]) -> Source:
    """Read a run; only the values of the given metrics and the validation loss belong to evaluations.

    Args:
        run_id: The run.
        location: A folder with MLflow's database, a URL or a link; None for the one in MLflow's environment.
        metrics: The metrics, with their directions.
        datasets: The datasets that metric names end with; empty for a single dataset, which adds no suffix.

    Raises:
        CommandError: If the run cannot be read, or has no such values.
        UsageError: If the metrics contradict each other.
    """
    if not run_id:
        raise UsageError("the run is missing: mlflow:RUN_ID")
    for metric in metrics:
        if metric.greater_is_better is None and metric.name != VALID_LOSS:
            raise UsageError(f"--metric {metric.name}: MLflow does not store directions: add :max or :min")
    facts = given_facts(metrics, datasets, Length())
    run = _Run(run_id, location)
    values = run.values({name: reported.datasets for name, reported in facts.metrics.items()})
    if not values:
        names = ", ".join(run.names) or "nothing"
        raise CommandError(
            escaped(f"the run {run_id} has no values of these metrics on these datasets; its metrics are: {names}")
        )
    per_epoch = run.steps_per_epoch()
    lacking: dict[Need, str] = {
        "elapsed": "MLflow stores the time of day, not the training time",
        "samples": "MLflow does not store it",
        "length": "MLflow does not store it; use another unit",
        "replicates": "MLflow does not store replicates: write an amount, such as by 0.01 or by 1%",
        "train_loss": "MLflow stores its mean since the last log, not since the last evaluation",
    }
    if per_epoch is None:
        reason = f"the run has no values of '{_EPOCH}' that the steps per epoch could be computed from"
        lacking |= {"epoch": reason, "steps_per_epoch": reason}
    facts = given_facts(metrics, datasets, Length(steps_per_epoch=per_epoch))
    return Source(History(tuple(_observations(values, per_epoch))), facts, lacking)


def open_experiment(name: str, location: str | None) -> list[tuple[str, TrainingReport]]:
    """Read the runs of an experiment, by its name or id, the newest first; of many, the newest ones. Each has its id.

    Raises:
        CommandError: It cannot be read, or has no runs.
    """
    with _connected(location, f"the experiment {name}") as client:
        found = client.get_experiment_by_name(name)
        if found is None and name.isdigit():
            found = client.get_experiment(name)
        runs = [] if found is None else list(client.search_runs([found.experiment_id], max_results=_MOST_RUNS + 1))
        if not runs:
            missing = "there is no experiment" if found is None else "there are no runs in the experiment"
            raise CommandError(escaped(f"{missing} {name!r} where --tracking-uri points"))
        if len(runs) > _MOST_RUNS:
            complain(f"note: only the newest {_MOST_RUNS} runs of {name} are read")
        return [(run.info.run_id, _reported_run(client, run)) for run in runs[:_MOST_RUNS]]


class _Run:
    """A readable run."""

    def __init__(self, run_id: str, location: str | None) -> None:
        self._run_id = run_id
        with _connected(location, f"the run {run_id}") as client:
            self._client = client
            data: Any = client.get_run(run_id).data
        self.names: tuple[str, ...] = tuple(sorted(data.metrics))

    def values(self, wanted: Mapping[str, Sequence[str]]) -> MetricHistory:
        """Return the values of metrics on datasets."""
        values: MetricHistory = {}
        for metric, datasets in wanted.items():
            stored = _VAL_LOSS if metric == VALID_LOSS else metric
            for dataset in datasets:
                name = metric_name(f"{stored}_{dataset}")
                if name not in self.names and len(datasets) == 1:
                    name = metric_name(stored)
                for step, value in self._history(name).items():
                    values.setdefault(step, {}).setdefault(dataset, {})[metric] = value
        return dict(sorted(values.items()))

    def steps_per_epoch(self) -> int | None:
        """Return the steps of an epoch, if the run records epochs."""
        found = {step / epoch for step, epoch in self._history(_EPOCH).items() if epoch > 0}
        rounded = {round(steps) for steps in found}
        close = all(abs(steps - round(steps)) <= 0.01 for steps in found)
        return rounded.pop() if len(rounded) == 1 and close else None

    def _history(self, name: str) -> dict[int, float]:
        """Return step -> value; nothing if the run lacks the metric."""
        if name not in self.names:
            return {}
        with quietly():
            return _points(self._client, self._run_id, name)


@contextmanager
def _connected(location: str | None, what: str) -> Iterator[MlflowClient]:
    """Yield a client; its errors in the block say that something cannot be read."""
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError:
        raise CommandError("MLflow is not installed: pip install mlflow") from None
    if location is None and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise CommandError(f"{what} cannot be read: say where it is by --tracking-uri, or by MLFLOW_TRACKING_URI")
    with quietly():
        try:
            yield MlflowClient(tracking_uri=_address(location))
        except MlflowException as error:
            raise CommandError(escaped(f"{what} cannot be read: {error}")) from None


def _points(client: MlflowClient, run_id: str, name: str) -> dict[int, float]:
    """Return step -> value; of several values at a step, the last one sent."""
    points = client.get_metric_history(run_id, name)
    return {point.step: point.value for point in sorted(points, key=lambda point: point.timestamp)}


def _reported_run(client: MlflowClient, run: Any) -> TrainingReport:
    found = {name: sorted(_points(client, run.info.run_id, name).items()) for name in sorted(run.data.metrics)}
    found.pop(_EPOCH, None)
    curves = tuple(Curve(name, "", *zip(*points, strict=True)) for name, points in found.items())
    end = max((curve.steps[-1] for curve in curves), default=0)
    name, status = run.info.run_name or run.info.run_id, run.info.status.lower()
    about = f"Run {run.info.run_id} of MLflow, which knows neither rules nor decisions."
    return TrainingReport(name, about, f"{status}, at step {end:,}", curves=curves, settings=run.data.params, end=end)


def _observations(values: MetricHistory, per_epoch: int | None) -> Iterator[Observation]:
    evaluation = 0
    for step, by_dataset in values.items():
        evaluation += step > 0
        epoch, in_epoch = (0, step) if per_epoch is None else divmod(step, per_epoch)
        yield Observation(Progress(step, epoch, in_epoch, evaluation), by_dataset, initial=step == 0)


def _address(location: str | None) -> str | None:
    if location is None or is_address(location):
        return location if location is None or "://" in location else f"http://{location}"
    folder = Path(location).resolve()
    if not folder.is_dir():
        raise CommandError(f"{location}: there is no such folder")
    database = folder / "mlflow.db"
    try:
        return sqlite_address(database) if database.is_file() else str(folder)
    except ValueError as error:
        raise CommandError(str(error)) from None

"""MLflow as a tracker, without touching MLflow's process-wide settings."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import posixpath
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from accmt.tracking.tracker import Logged, Status, Unreachable, flat

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

RUN_ARGUMENTS = ("run_name", "tags", "description", "start_time")

_FORBIDDEN = re.compile(r"[^\w\-. /]")
_LONGEST_NAME = 250
_LONGEST_PARAMETER = 6000
_IP = r"\d{1,3}(?:\.\d{1,3}){3}|\[[0-9a-fA-F:]+\]|localhost"
_ADDRESS = re.compile(rf"(?:{_IP}|[\w-]+(?:\.[\w-]+)*:\d+|(?:{_IP}):\d+)(?:/.*)?")
_GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE")
_PASSES = ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED")
_PASSES_ELSEWHERE = (*_PASSES, "INTERNAL_ERROR")  # what MLflow calls a server that is not there
_DESCRIPTION = "mlflow.note.content"
_QUIET = "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"


class MlflowTracker:
    """Sends values to an MLflow store.

    Args:
        location: A folder (an sqlite store in it, artifacts beside it), an address such as `10.0.0.1:5000`, or a link.
        experiment: The name of the experiment; it is created if it is not there.
        parameters: Logged as parameters of a new run.
        run_id: A run to continue, from `state()`; if it is not there any more, a new one is made. Values that it
            already has are not sent again.
        run: `run_name`, `tags`, `description`, and `start_time` in milliseconds since 1970.

    Raises:
        Unreachable: The store does not answer, here and in all methods.
        ValueError: The folder has a name that cannot stand in the address of a store.
    """

    def __init__(
        self,
        location: str,
        experiment: str,
        parameters: Mapping[str, Any],
        run_id: str | None = None,
        **run: Any,
    ) -> None:
        from mlflow import MlflowClient

        uri, artifacts = _store(location)
        self._passes = _PASSES_ELSEWHERE if is_address(location) else _PASSES
        with quietly(), _answering(self._passes):
            self._client = MlflowClient(tracking_uri=uri)
            continues = run_id is not None and self._continues(run_id)
            self._run_id = str(run_id) if continues else self._new_run(experiment, artifacts, run)
            self._sent = _sent(self._client, self._run_id) if continues else {}
            if not continues:
                self._log_parameters(parameters)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.log_batch([Logged(values, step, time.time())])

    def log_batch(self, batch: Sequence[Logged]) -> None:
        """Send values of several steps. Those that were sent before, with the same time, are not doubled by MLflow."""
        metrics = [metric for logged in batch for metric in self._metrics(logged)]
        with _answering(self._passes):
            self._client.log_batch(self._run_id, metrics=metrics)

    def log_artifact(self, path: Path) -> None:
        with _answering(self._passes):
            self._client.log_artifact(self._run_id, str(path))

    def log_artifacts(self, folder: Path) -> None:
        with _answering(self._passes):
            self._client.log_artifacts(self._run_id, str(folder))

    def state(self) -> dict[str, Any]:
        return {"mlflow": self._run_id}

    def close(self, status: Status) -> None:
        with quietly(), _answering(self._passes):
            self._client.set_terminated(self._run_id, status)

    def _continues(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            self._client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code not in _GONE:
                raise
            return False
        return True

    def _new_run(self, experiment: str, artifacts: str | None, run: Mapping[str, Any]) -> str:
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment, artifacts)
        arguments = {name: value for name, value in run.items() if name != "description"}
        if "description" in run:
            arguments["tags"] = {**(run.get("tags") or {}), _DESCRIPTION: run["description"]}
        return str(self._client.create_run(number, **arguments).info.run_id)

    def _metrics(self, logged: Logged) -> list[Metric]:
        from mlflow.entities import Metric

        named = {metric_name(name): float(value) for name, value in logged.values.items()}
        new = {name: value for name, value in named.items() if not self._has(name, logged.step, value)}
        return [Metric(name, value, int(logged.time * 1000), logged.step) for name, value in new.items()]

    def _log_parameters(self, parameters: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        named = {metric_name(name): str(value)[:_LONGEST_PARAMETER] for name, value in flat(parameters).items()}
        self._client.log_batch(self._run_id, params=[Param(name, value) for name, value in named.items()])

    def _has(self, name: str, step: int, value: float) -> bool:
        former = self._sent.get((name, step))
        return former is not None and (former == value or (math.isnan(former) and math.isnan(value)))


def metric_name(name: str) -> str:
    """A name that MLflow allows, different for different names.

    Other characters, and slashes and dots that would make it an unusual path, become their code in percent notation
    with ':' for '%': `recall@10` is `recall:4010`. `original_name` takes it back. Only a name that gets too long is cut
    for good, and then ends in a hash.
    """
    coded = _FORBIDDEN.sub(lambda match: _code(match[0]), name)
    if coded.startswith((".", "/")) or posixpath.normpath(coded) != coded:
        coded = re.sub(r"^\.|/", lambda match: _code(match[0]), coded) or ":"
    if len(coded) > _LONGEST_NAME:
        digest = hashlib.sha256(coded.encode()).hexdigest()[:32]
        coded = f"{coded[: _LONGEST_NAME - len(digest) - 2]}::{digest}"
    return coded


def original_name(name: str) -> str:
    """What `metric_name` made this name of; one that was too long, and was cut, as it is."""
    if name == ":" or "::" in name:
        return "" if name == ":" else name
    return unquote(name.replace(":", "%"), errors="surrogatepass")


def load() -> None:
    """Import MLflow: done on a thread, it could be half done when the main one forks processes that load data."""
    import_module("mlflow")


def is_address(location: str) -> bool:
    """Whether a location is an IP address, a host with a port, or a link, and not a folder."""
    return "://" in location or _ADDRESS.fullmatch(location) is not None


def _code(character: str) -> str:
    return "".join(f":{byte:02X}" for byte in character.encode(errors="surrogatepass"))


def _store(location: str) -> tuple[str, str | None]:
    """The address of a store, and of the folder for its artifacts where that is ours to say."""
    if is_address(location):
        return (location if "://" in location else f"http://{location}"), None
    folder = Path(location).resolve()
    store = sqlite_address(folder / "mlflow.db")
    folder.mkdir(parents=True, exist_ok=True)
    return store, (folder / "artifacts").as_uri()


def sqlite_address(file: Path) -> str:
    from sqlalchemy.engine import make_url

    address = f"sqlite:///{file}"
    if make_url(address).database != str(file):
        raise ValueError(f"MLflow cannot keep its store in '{file.parent}': choose a folder without '?' and '%'")
    return address


def _sent(client: MlflowClient, run_id: str) -> dict[tuple[str, int], float]:
    """(name, step) -> value of all that a run has."""
    names = client.get_run(run_id).data.metrics
    return {(name, point.step): point.value for name in names for point in client.get_metric_history(run_id, name)}


@contextmanager
def _answering(passes: Sequence[str]) -> Iterator[None]:
    """Tell a store that does not answer now, as these codes say, from one that refuses."""
    from mlflow.exceptions import MlflowException
    from requests import ConnectionError as NoConnection
    from requests import Timeout

    try:
        yield
    except MlflowException as error:
        if error.error_code in passes:
            raise Unreachable(str(error)) from error
        raise
    except (NoConnection, Timeout) as error:
        raise Unreachable(str(error)) from error


@contextmanager
def quietly() -> Iterator[None]:
    """MLflow tells nobody that it makes a database, or where a run can be looked at."""
    logger = logging.getLogger("mlflow")
    level, former = logger.level, os.environ.get(_QUIET)
    logger.setLevel(logging.WARNING)
    os.environ[_QUIET] = "true"
    try:
        yield
    finally:
        logger.setLevel(level)
        if former is None:
            del os.environ[_QUIET]
        else:
            os.environ[_QUIET] = former

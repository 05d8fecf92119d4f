"""MLflow as a tracker, without touching MLflow's process-wide settings."""

from __future__ import annotations

import hashlib
import logging
import os
import posixpath
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from accmt.files.foreign import link_to
from accmt.rules.printable import masked
from accmt.tracking.records import Recipient
from accmt.tracking.tracker import Logged, Resumption, Status, Unreachable, flat

if TYPE_CHECKING:
    from mlflow.entities import Metric, Param

NAME = "mlflow"
STORE = "mlflow.db"
RUN_ARGUMENTS = ("run_name", "tags", "description", "start_time")

_FORBIDDEN = re.compile(r"[^\w\-. /]")
_RUN = re.compile(r"[\w-]{1,100}")
_LONGEST_NAME = 250
_LONGEST_PARAMETER = 6000
_MOST_PARAMETERS = 100  # in one request
_IP = r"\d{1,3}(?:\.\d{1,3}){3}|\[[0-9a-fA-F:]+\]|localhost"
_ADDRESS = re.compile(rf"(?:[^/\s@]+@)?(?:{_IP}|[\w-]+(?:\.[\w-]+)*:\d+|(?:{_IP}):\d+)(?:/.*)?")
_GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE")
_PASSES = ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "DEADLINE_EXCEEDED")
_PASSES_ELSEWHERE = (*_PASSES, "INTERNAL_ERROR")  # MLflow's code for a server that is down
_PASSES_LATER = ("UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED", "ENDPOINT_NOT_FOUND")
_DOWN = (500, 502, 503, 504)
_PASSING = (401, 403, 404, 408, 429, *_DOWN)
_PATIENCE = (5.0, 10.0)  # seconds, to connect and to answer
_DESCRIPTION = "mlflow.note.content"
_TRAINING = "accmt.training"
_QUIET = "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"


_Point = tuple[str, int, str]
"""A metric, a step, and, where that counts, a value."""


class MlflowTracker:
    """Tracker that sends values to an MLflow store.

    Args:
        location: A folder (with an SQLite store and artifacts in it), an address such as `10.0.0.1:5000`, or a URL.
        experiment: The name of the experiment; it is created if it does not exist.
        parameters: Parameters of a new run.
        run_id: A run to resume, from `state()`; ignored if it no longer exists.
        training: Unique id of the training. The run has it as a tag, so that it is found and no second one is begun,
            even if the answer to the first attempt was lost.
        run: `run_name`, `tags`, `description`, and `start_time` in milliseconds since 1970.

    Raises:
        Unreachable: The store does not answer; raised by all methods too.
        ValueError: The folder's name cannot be part of the address of a store.
    """

    def __init__(
        self,
        location: str,
        experiment: str,
        parameters: Mapping[str, Any],
        run_id: str | None = None,
        training: str | None = None,
        **run: Any,
    ) -> None:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        self._exception = MlflowException
        self._folder = None if is_address(location) else Path(location).resolve()
        self._uri, artifacts = _store(location)
        self._passes: tuple[str, ...] = _PASSES_ELSEWHERE if is_address(location) else _PASSES
        self._training = training
        self._repeatable: dict[Resumption, Counter[_Point]] = {}
        with quietly(), self._answering():
            self._client = MlflowClient(tracking_uri=self._uri)
            if run_id is not None and _RUN.fullmatch(run_id) and self._continues(run_id):
                self._run_id = run_id
            else:
                self._run_id = self._new_run(experiment, artifacts, run)
                self._log_parameters(parameters)
        if is_address(location):
            self._passes += _PASSES_LATER  # it accepted us once

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.log_batch([Logged(values, step, int(time.time() * 1000))])

    def log_batch(self, batch: Sequence[Logged]) -> None:
        """Send values of several steps, all with the same resumption.

        MLflow does not duplicate values that were sent before with the same time. Values that a resumed training logs
        again are not sent again; if the user chose an earlier checkpoint, only equal values are left out.
        """
        from mlflow.entities import Metric

        resumption, taken, metrics = batch[0].resumption, Counter[_Point](), []
        with self._answering():
            before = Counter[_Point]() if resumption is None else self._sent_before(resumption)
            for logged in batch:
                for name, number in logged.values.items():
                    metric = Metric(metric_name(name), float(number), logged.time, logged.step)
                    point = _point(metric, resumption)
                    if taken[point] < before[point]:
                        taken[point] += 1
                    else:
                        metrics.append(metric)
            if metrics:
                self._client.log_batch(self._run_id, metrics=metrics)
        before.subtract(taken)

    def log_artifact(self, path: Path) -> None:
        with self._answering():
            self._check_artifacts()
            self._client.log_artifact(self._run_id, str(path))

    def log_artifacts(self, folder: Path) -> None:
        with self._answering():
            self._check_artifacts()
            self._client.log_artifacts(self._run_id, str(folder))

    def state(self) -> dict[str, Any]:
        return {NAME: self._run_id}

    def close(self, status: Status, time: int | None = None) -> None:
        with quietly(), self._answering():
            self._client.set_terminated(self._run_id, status, time)
            self._delete_others(self._client.get_run(self._run_id).info.experiment_id)

    def _check_artifacts(self) -> None:
        """Check that the artifacts of a store in a local folder are in that folder.

        Raises:
            ValueError: They are elsewhere on this disk.
        """
        if self._folder is None:
            return
        place = urlsplit(str(self._client.get_run(self._run_id).info.artifact_uri))
        path = Path(unquote(place.path))
        if place.scheme in ("", "file") and (".." in path.parts or not path.is_relative_to(self._folder)):
            raise ValueError(f"its store keeps artifacts outside of {self._folder}, in {path}")
        if place.scheme in ("", "file") and (link := link_to(self._folder, path)) is not None:
            raise ValueError(f"{link} is a link: nothing is written behind it")

    def _continues(self, run_id: str) -> bool:
        try:
            self._client.update_run(run_id, status="RUNNING")
        except self._exception as error:
            if error.error_code not in _GONE:
                raise
            return False
        return True

    def _new_run(self, experiment: str, artifacts: str | None, run: Mapping[str, Any]) -> str:
        """Return the run of this training: one that was begun before, or a new one."""
        number = self._experiment(experiment, artifacts)
        found = self._runs(number)
        if found:
            self._client.update_run(found[0], status="RUNNING")
            return found[0]
        arguments = {name: value for name, value in run.items() if name != "description"}
        tags = dict(run.get("tags") or {})
        tags |= {_DESCRIPTION: run["description"]} if "description" in run else {}
        tags |= {_TRAINING: self._training} if self._training is not None else {}
        made = str(self._client.create_run(number, **{**arguments, "tags": tags}).info.run_id)
        self._run_id = min([made, *self._runs(number)])
        self._delete_others(number)
        return self._run_id

    def _experiment(self, name: str, artifacts: str | None) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name, artifacts))
            except self._exception as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # an answer was lost, or another process was faster
                    raise
            found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id)

    def _runs(self, experiment: str) -> list[str]:
        """Find all runs of this training: several only if a server created one and its answer was lost."""
        if self._training is None:
            return []
        wanted = f"tags.`{_TRAINING}` = '{self._training}'"
        return sorted(str(run.info.run_id) for run in self._client.search_runs([experiment], wanted))

    def _delete_others(self, experiment: str) -> None:
        for run_id in self._runs(experiment):
            if run_id != self._run_id:
                self._client.delete_run(run_id)

    def _log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Log the parameters that the run does not have yet."""
        named = {metric_name(name): str(value)[:_LONGEST_PARAMETER] for name, value in flat(parameters).items()}
        for first in range(0, len(named), _MOST_PARAMETERS):
            some = dict(list(named.items())[first : first + _MOST_PARAMETERS])
            try:
                self._client.log_batch(self._run_id, params=self._lacking(some))
            except self._exception:  # an attempt that timed out may have logged them in the meantime
                self._client.log_batch(self._run_id, params=self._lacking(some))

    def _lacking(self, parameters: Mapping[str, str]) -> list[Param]:
        from mlflow.entities import Param

        there = self._client.get_run(self._run_id).data.params
        return [Param(name, value) for name, value in parameters.items() if name not in there]

    def _sent_before(self, resumption: Resumption) -> Counter[_Point]:
        """Count the points in the run that the training logs again, less those that it has logged again already."""
        if resumption not in self._repeatable:
            names = self._client.get_run(self._run_id).data.metrics
            points = (point for name in names for point in self._client.get_metric_history(self._run_id, name))
            self._repeatable[resumption] = Counter(
                _point(point, resumption) for point in points if resumption.may_repeat(point.step, point.timestamp)
            )
        return self._repeatable[resumption]

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Raise `Unreachable` if a store does not answer now; let its refusals pass."""
        from requests import ConnectionError as NoConnection
        from requests import HTTPError, Timeout

        try:
            _look_for(self._uri)
            yield
        except self._exception as error:
            if error.error_code in self._passes:
                raise Unreachable(str(error)) from error
            raise
        except HTTPError as error:  # raised for artifacts
            if error.response is not None and error.response.status_code in _PASSING:
                raise Unreachable(str(error)) from error
            raise
        except (NoConnection, Timeout) as error:
            raise Unreachable(str(error)) from error


def _point(metric: Metric, resumption: Resumption | None) -> _Point:
    goes_back = resumption is not None and resumption.goes_back
    return metric.key, metric.step, repr(metric.value) if goes_back else ""


def mlflow_tracker_for(recipient: Recipient, arguments: Mapping[str, Any], run: Any) -> MlflowTracker:
    """Create the tracker of an outbox: it resumes `run`, or the existing run of this training, or begins one.

    Raises:
        ValueError: No training writes such a run, arguments or training id.
    """
    unknown = sorted(set(arguments) - set(RUN_ARGUMENTS))
    if unknown or not isinstance(run, str | None) or _RUN.fullmatch(recipient.training) is None:
        what = f"its arguments {', '.join(unknown)}" if unknown else "what it says of the run"
        raise ValueError(f"{what}: a training does not write this")
    return MlflowTracker(
        *(recipient.location, recipient.experiment, recipient.parameters, run, recipient.training),
        **{"start_time": recipient.began, **arguments},
    )


def metric_name(name: str) -> str:
    """Encode a name as one that MLflow allows, different for different names.

    Other characters, and slashes and dots that would make it an unusual path, are percent-encoded with ':' for '%':
    `recall@10` is `recall:4010`. Only a name that gets too long is cut irreversibly, and then ends in a hash.
    """
    coded = _FORBIDDEN.sub(lambda match: _code(match[0]), name)
    if coded.startswith((".", "/")) or posixpath.normpath(coded) != coded:
        coded = re.sub(r"^\.|/", lambda match: _code(match[0]), coded) or ":"
    if len(coded) > _LONGEST_NAME:
        digest = hashlib.sha256(coded.encode()).hexdigest()[:32]
        coded = f"{coded[: _LONGEST_NAME - len(digest) - 2]}::{digest}"
    return coded


def load() -> None:
    """Import MLflow, not on a thread: the main thread could fork data loading workers in the middle of the import."""
    import_module("mlflow")


def is_address(location: str) -> bool:
    """Return whether a location is an IP address, a host with a port, or a URL, and not a folder."""
    return "://" in location or _ADDRESS.fullmatch(location) is not None


def _code(character: str) -> str:
    return "".join(f":{byte:02X}" for byte in character.encode(errors="surrogatepass"))


def _store(location: str) -> tuple[str, str | None]:
    """Return the address of a store, and of its artifact folder, None if the server chooses that."""
    if is_address(location):
        return (location if "://" in location else f"http://{location}"), None
    folder = Path(location).resolve()
    store = sqlite_address(folder / STORE)
    folder.mkdir(parents=True, exist_ok=True)
    return store, (folder / "artifacts").as_uri()


def sqlite_address(file: Path) -> str:
    from sqlalchemy.engine import make_url

    address = f"sqlite:///{file}"
    if make_url(address).database != str(file):
        raise ValueError(f"MLflow cannot keep its store in '{file.parent}': choose a folder without '?' and '%'")
    return address


def _look_for(uri: str) -> None:
    """Check that a server is alive. MLflow itself would retry for minutes before it gives up.

    Raises:
        Unreachable: It does not answer, or answers with a server error.
    """
    if not uri.startswith(("http://", "https://")):
        return
    import requests

    try:
        answer = requests.get(f"{uri.rstrip('/')}/health", timeout=_PATIENCE, allow_redirects=False)
    except requests.exceptions.SSLError:
        return  # a server answers; MLflow knows which certificates to trust
    except requests.ConnectionError as error:
        raise Unreachable(f"no connection to {masked(uri)}") from error
    except requests.Timeout as error:
        raise Unreachable(f"{masked(uri)} does not answer within {_PATIENCE[1]:g} seconds") from error
    except requests.RequestException:
        return
    if answer.status_code in _DOWN:
        raise Unreachable(f"{masked(uri)} answers {answer.status_code} {answer.reason}")


@contextmanager
def quietly() -> Iterator[None]:
    """Silence the messages of MLflow about creating a database and the URLs of runs."""
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

"""A real MLflow server, and trackers that do what a test tells them."""

from __future__ import annotations

import sys
import threading
import warnings
from pathlib import Path

import pytest

from accmt.tracking.outbox import Outbox
from accmt.tracking.segment import Recipient

sys.path.insert(0, str(Path(__file__).parent))

from servers import Server


@pytest.fixture(scope="session")
def mlflow():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("mlflow", reason="mlflow is not installed")


@pytest.fixture(scope="session")
def server(tmp_path_factory, mlflow):
    """A real server; a test that freezes it also thaws it."""
    server = Server(tmp_path_factory.mktemp("server"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


class Recorder:
    """A tracker that keeps what it is sent, in order, and may be told to fail or to block."""

    def __init__(self):
        self.calls = []
        self.threads = set()
        self.failures = []
        self.free = threading.Event()
        self.free.set()
        self.entered = threading.Event()

    def log(self, values, step):
        self._take(("log", dict(values), step))

    def log_artifact(self, path):
        self._take(("file", path.name))

    def log_artifacts(self, folder):
        self._take(("folder", folder.name))

    def state(self):
        return {"recorder": "run 1"}

    def close(self, status, time=None):
        self._take(("close", status))

    def _take(self, call):
        self.threads.add(threading.get_ident())
        self.entered.set()
        assert self.free.wait(60)
        failure = self.failures.pop(0) if self.failures else None
        if callable(failure):
            failure = failure(call)
        if failure is not None:
            raise failure
        self.calls.append(call)


class BatchRecorder(Recorder):
    """The same, of whole batches."""

    def log_batch(self, batch):
        self._take(("batch", [(dict(logged.values), logged.step) for logged in batch]))


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def batch_recorder():
    return BatchRecorder()


@pytest.fixture
def outbox_for(tmp_path):
    """The name of a tracker -> its outbox below `tmp_path / "model"`, empty."""

    def make(tracker, training="training-1", resumption=None):
        recipient = Recipient(tracker, training, "elsewhere", "experiment", {"lr": 0.1}, {}, began=1_000)
        return Outbox(tmp_path / "model", recipient, resumption)

    return make

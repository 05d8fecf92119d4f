"""A real MLflow server, and trackers that do what a test tells them."""

from __future__ import annotations

import sys
import threading
import warnings
from pathlib import Path

import pytest

from accmt.tracking.outbox import Outbox
from accmt.tracking.records import Recipient, SentPosition

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
    """A tracker that keeps what it is sent, in order, and may be told to fail or to block.

    Attributes:
        failures: What the next calls raise; None is success. An exception that is `failing` is raised by every call.
        free: While this is not set, calls block.
    """

    def __init__(self):
        self.calls, self.threads, self.failures, self.failing = [], set(), [], None
        self.free, self.entered = threading.Event(), threading.Event()
        self.free.set()

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
        assert self.free.wait(300)
        failure = self.failures.pop(0) if self.failures else self.failing
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


def recipient_of(tracker="recorder", location="elsewhere", **given):
    facts = {"experiment": "experiment", "parameters": {"lr": 0.1}, "arguments": {}, "began": 1_000}
    return Recipient(tracker, "1", str(location), **facts | given)


@pytest.fixture
def leave(tmp_path):
    """Entries of a training that is over -> they wait in its outbox."""

    def fill(*entries, resumption=None, run=None, model=tmp_path / "model", **given):
        outbox = Outbox(model)
        outbox.read_by(SentPosition(recipient_of(**given), run=run), resumption)
        for entry in entries:
            outbox.add(entry)
        outbox.release()

    return fill

"""A real MLflow server, and trackers that do what a test tells them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from contextlib import suppress

import psutil
import pytest

from accmt.tracking.outbox import Outbox
from accmt.tracking.segment import Recipient


@pytest.fixture(scope="session")
def mlflow():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("mlflow", reason="mlflow is not installed")


class Server:
    """A server and the processes that it starts, in a session of their own."""

    def __init__(self, folder):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self.output = folder / "output.txt"
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}", "--workers", "1"]
        command += ["--artifacts-destination", str(folder / "artifacts")]
        with self.output.open("w") as output:
            self._process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, start_new_session=True)

    def wait_until_it_answers(self):
        for _ in range(240):
            with suppress(OSError), urllib.request.urlopen(f"http://{self.address}/health", timeout=5):
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.5)
        pytest.fail(f"the server does not answer:\n{self.output.read_text()[-3000:]}")

    def freeze(self):
        """Let it take connections and answer none."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def thaw(self):
        os.killpg(self._process.pid, signal.SIGCONT)

    def stop(self):
        """End the whole tree."""
        tree = []
        with suppress(psutil.NoSuchProcess):
            tree = psutil.Process(self._process.pid).children(recursive=True)
        for number in (signal.SIGCONT, signal.SIGTERM):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        psutil.wait_procs(tree, timeout=5)
        for process in tree:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@pytest.fixture(scope="session")
def server(tmp_path_factory, mlflow):
    """A real server; a test that freezes it also thaws it."""
    server = Server(tmp_path_factory.mktemp("server"))
    try:
        server.wait_until_it_answers()
        yield server
    finally:
        server.stop()


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

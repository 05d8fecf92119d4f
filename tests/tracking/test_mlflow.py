"""Runs in a real MLflow store, in a folder and behind a server, and nothing of the process is changed by it."""

import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accmt.tracking.mlflow import MlflowTracker, metric_name, original_name

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def mlflow():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("mlflow")


@pytest.fixture(scope="module")
def store(tmp_path_factory, mlflow):
    """A folder with a store; making its database takes seconds."""
    folder = tmp_path_factory.mktemp("store") / "lögs 100% #1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        MlflowTracker(str(folder), "first", {}).close("FINISHED")
    return folder


@pytest.fixture
def client(mlflow, store):
    return mlflow.MlflowClient(tracking_uri=f"sqlite:///{store / 'mlflow.db'}")


def points(client, run_id, name):
    return [(point.step, point.value) for point in client.get_metric_history(run_id, name)]


def run_of(tracker):
    return tracker.state()["mlflow"]


def test_a_run_in_a_folder(store, client, tmp_path):
    parameters = {"lr": 0.1, "optim": {"type": "AdamW", "betas": [0.9, 0.99]}, "none": None, "a@b": "x"}
    tracker = MlflowTracker(str(store), "my training", parameters, run_name="first try", tags={"team": "nlp"})
    run_id = run_of(tracker)
    assert client.get_run(run_id).info.status == "RUNNING"
    for step in (10, 20):
        tracker.log({"train_loss": 1 / step, "recall@10": step}, step)
    tracker.log({"train_loss": math.nan}, 30)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("hello")
    tracker.log_artifact(tmp_path / "notes.txt")
    tracker.log_artifacts(tmp_path / "model")
    tracker.close("FINISHED")

    run = client.get_run(run_id)
    assert client.get_experiment(run.info.experiment_id).name == "my training"
    assert (run.info.status, run.info.run_name, run.data.tags["team"]) == ("FINISHED", "first try", "nlp")
    assert run.data.params == {
        "lr": "0.1",
        "optim.type": "AdamW",
        "optim.betas": "[0.9, 0.99]",
        "none": "None",
        "a:40b": "x",
    }
    losses = points(client, run_id, "train_loss")
    assert losses[:2] == [(10, 0.1), (20, 0.05)]
    assert losses[2][0] == 30
    assert math.isnan(losses[2][1])
    assert points(client, run_id, "recall:4010") == [(10, 10.0), (20, 20.0)]
    assert sorted(map(original_name, run.data.metrics)) == ["recall@10", "train_loss"]
    assert sorted(file.path for file in client.list_artifacts(run_id)) == ["config.json", "notes.txt"]
    assert any((store / "artifacts").rglob("notes.txt"))


def test_only_the_folder_is_used(store, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    tracker = MlflowTracker(str(store), "my training", {})
    tracker.log({"a": 1}, 1)
    tracker.close("FINISHED")
    assert not list(tmp_path.iterdir())
    assert sorted(path.name for path in store.iterdir()) in (["artifacts", "mlflow.db"], ["mlflow.db"])


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_status(store, client, status):
    tracker = MlflowTracker(str(store), "statuses", {})
    tracker.close(status)
    assert client.get_run(run_of(tracker)).info.status == status


def test_many_and_long_parameters(store, client):
    parameters = {f"p{number}": number for number in range(250)} | {"long": "x" * 10_000, "k" * 300: 1}
    tracker = MlflowTracker(str(store), "parameters", parameters)
    found = client.get_run(run_of(tracker)).data.params
    assert len(found) == 252
    assert found["long"] == "x" * 6000
    tracker.log({f"m{number}": number for number in range(1500)}, 1)
    assert len(client.get_run(run_of(tracker)).data.metrics) == 1500
    tracker.close("FINISHED")


def test_a_run_is_continued_without_duplicates(store, client):
    first = MlflowTracker(str(store), "continued", {"lr": 1})
    for step in (1, 2, 3):
        first.log({"loss": 1 / step, "nan": math.nan, "elapsed": step}, step)
    first.close("FAILED")
    second = MlflowTracker(str(store), "continued", {"lr": 1}, run_of(first), run_name="ignored")
    assert run_of(second) == run_of(first)
    assert client.get_run(run_of(first)).info.status == "RUNNING"
    for step in (2, 3, 4):  # resumed from a checkpoint at step 1
        second.log({"loss": 1 / step, "nan": math.nan, "elapsed": step + 10}, step)
    second.close("FINISHED")
    assert points(client, run_of(first), "loss") == [(1, 1.0), (2, 1 / 2), (3, 1 / 3), (4, 1 / 4)]
    assert [step for step, _ in points(client, run_of(first), "nan")] == [1, 2, 3, 4]
    assert [step for step, _ in points(client, run_of(first), "elapsed")] == [1, 2, 3, 2, 3, 4]
    assert client.get_run(run_of(first)).info.status == "FINISHED"


def test_a_run_that_is_gone_is_made_anew(store, client):
    deleted = MlflowTracker(str(store), "gone", {})
    client.delete_run(run_of(deleted))
    for run_id in (run_of(deleted), "0" * 32, "no id at all"):
        tracker = MlflowTracker(str(store), "gone", {"lr": 1}, run_id)
        assert run_of(tracker) != run_id
        assert client.get_run(run_of(tracker)).data.params == {"lr": "1"}


def test_another_error_does_not_make_a_second_run(store, mlflow, monkeypatch):
    def fails(*arguments, **keywords):
        raise mlflow.exceptions.MlflowException("the server is down")

    tracker = MlflowTracker(str(store), "down", {})
    monkeypatch.setattr(mlflow.MlflowClient, "update_run", fails)
    with pytest.raises(mlflow.exceptions.MlflowException, match="the server is down"):
        MlflowTracker(str(store), "down", {}, run_of(tracker))


def loggers():
    found = [
        logging.root,
        *(log for log in logging.root.manager.loggerDict.values() if isinstance(log, logging.Logger)),
    ]
    return {log.name: (log.level, log.disabled, log.propagate, tuple(map(id, log.handlers))) for log in found}


def test_nothing_of_the_process_is_changed_and_nothing_printed(tmp_path, mlflow, capfd, monkeypatch):
    """In a folder without a store, so that a database is made, which MLflow likes to tell about."""
    monkeypatch.chdir(tmp_path)
    mine = logging.getLogger("my.application")
    mine.addHandler(logging.NullHandler())
    mlflow.set_tracking_uri("http://elsewhere:1234")
    before = loggers()
    environment = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    showing, hook = warnings.showwarning, sys.excepthook
    try:
        capfd.readouterr()
        tracker = MlflowTracker("runs", "quiet", {"a": 1})
        tracker.log({"loss": 1.0}, 1)
        tracker.close("FINISHED")
        assert capfd.readouterr() == ("", "")
        assert mlflow.get_tracking_uri() == "http://elsewhere:1234"
        assert mlflow.active_run() is None
        assert dict(os.environ) == environment
    finally:
        mlflow.set_tracking_uri(None)
    assert {name: state for name, state in loggers().items() if name in before} == before
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    assert (warnings.showwarning, sys.excepthook) == (showing, hook)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_importing_mlflow_prints_nothing_either(tmp_path):
    code = (
        "import logging\n"
        "logging.getLogger('mine').setLevel(7)\n"
        "from accmt.tracking.mlflow import MlflowTracker\n"
        "MlflowTracker('runs', 'quiet', {}).close('FINISHED')\n"
        "assert logging.getLogger('mine').level == 7\n"
        "assert not logging.getLogger('mine').disabled\n"
        "assert not logging.root.handlers\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_folder_that_cannot_stand_in_an_address_is_refused(tmp_path, mlflow):
    """MLflow would write to another one."""
    with pytest.raises(ValueError, match="MLflow cannot keep its store") as caught:
        MlflowTracker(str(tmp_path / "what?"), "odd", {})
    assert str(caught.value) == (
        f"MLflow cannot keep its store in '{tmp_path / 'what?'}': choose a folder without '?' and '%'"
    )
    assert not list(tmp_path.iterdir())


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(max_size=12) | st.text("./: :%@a", max_size=8) | st.text(max_size=400))
def test_mlflow_allows_every_name_and_it_comes_back(mlflow, name):
    from mlflow.utils import validation

    sent = metric_name(name)
    validation._validate_metric_name(sent)
    assert len(sent) <= validation.MAX_ENTITY_KEY_LENGTH
    assert original_name(sent) == (sent if "::" in sent else name)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a real server, and the folder it works in."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--host", "127.0.0.1"]
    command += ["--port", address.rpartition(":")[2], "--workers", "1"]
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, start_new_session=True)
    try:
        wait_until_it_answers(address, process, folder / "output.txt")
        yield address
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_it_answers(address, process, output):
    for _ in range(240):
        with suppress(OSError), urllib.request.urlopen(f"http://{address}/health", timeout=5):
            return
        if process.poll() is not None:
            break
        time.sleep(0.5)
    pytest.fail(f"the server does not answer:\n{output.read_text()[-3000:]}")


def test_a_real_server(server, mlflow, tmp_path, capfd):
    capfd.readouterr()
    tracker = MlflowTracker(server, "over the net", {"lr": 0.1}, run_name="far")
    tracker.log({"loss": 0.5, "recall@10": 0.25}, 7)
    (tmp_path / "notes.txt").write_text("hello")
    tracker.log_artifact(tmp_path / "notes.txt")
    tracker.close("KILLED")
    again = MlflowTracker(f"http://{server}", "over the net", {}, run_of(tracker))
    again.log({"loss": 0.5}, 7)
    again.log({"loss": 0.125}, 8)
    again.close("FINISHED")
    assert capfd.readouterr() == ("", "")

    client = mlflow.MlflowClient(tracking_uri=f"http://{server}")
    run = client.get_run(run_of(tracker))
    assert (run.info.status, run.info.run_name, run.data.params) == ("FINISHED", "far", {"lr": "0.1"})
    assert points(client, run_of(tracker), "loss") == [(7, 0.5), (8, 0.125)]
    assert points(client, run_of(tracker), metric_name("recall@10")) == [(7, 0.25)]
    path = client.download_artifacts(run_of(tracker), "notes.txt", str(tmp_path))
    with open(path, encoding="utf-8") as file:
        assert file.read() == "hello"

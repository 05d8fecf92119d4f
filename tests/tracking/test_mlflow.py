"""Runs in a real MLflow store, in a folder and behind a server, and nothing of the process is changed by it."""

import logging
import math
import os
import signal
import subprocess
import sys
import warnings
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accmt.tracking.mlflow import RUN_ARGUMENTS, MlflowTracker, metric_name
from accmt.tracking.tracker import Logged, Resumption, Unreachable

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


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
    assert sorted(run.data.metrics) == ["recall:4010", "train_loss"]
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
    tracker.close(status, 1_234_567_000)
    assert client.get_run(run_of(tracker)).info.end_time == 1_234_567_000


def test_many_and_long_parameters(store, client):
    parameters = {f"p{number}": number for number in range(250)} | {"long": "x" * 10_000, "k" * 300: 1}
    tracker = MlflowTracker(str(store), "parameters", parameters)
    found = client.get_run(run_of(tracker)).data.params
    assert len(found) == 252
    assert found["long"] == "x" * 6000
    tracker.log({f"m{number}": number for number in range(1500)}, 1)
    assert len(client.get_run(run_of(tracker)).data.metrics) == 1500
    tracker.close("FINISHED")


def sent(tracker, steps, shift=0, resumption=None, time=1_000):
    """Send values of steps: `loss` follows from the step, and `elapsed` does not."""
    tracker.log_batch(
        [
            Logged({"loss": 1 / step, "nan": math.nan, "elapsed": step + shift}, step, time + step, resumption)
            for step in steps
        ]
    )


@pytest.mark.parametrize("goes_back", [False, True])
def test_a_run_is_continued_without_duplicates(store, client, goes_back):
    """Unless somebody went back on purpose: then values that differ are those of another course."""
    first = MlflowTracker(str(store), "continued", {"lr": 1})
    sent(first, (1, 2, 3))
    first.close("FAILED")
    second = MlflowTracker(str(store), "continued", {"lr": 1}, run_of(first), run_name="ignored")
    assert run_of(second) == run_of(first)
    assert client.get_run(run_of(first)).info.status == "RUNNING"
    resumption = Resumption(1, 1_001, 2_000, goes_back)
    sent(second, (2, 3, 4), 10, resumption, 3_000)
    sent(second, (5,), 10, resumption, 3_000)
    second.close("FINISHED")
    assert points(client, run_of(first), "loss") == [(1, 1.0), (2, 1 / 2), (3, 1 / 3), (4, 1 / 4), (5, 1 / 5)]
    assert [step for step, _ in points(client, run_of(first), "nan")] == [1, 2, 3, 4, 5]
    elapsed = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 14.0), (5, 15.0)]
    both = [*elapsed[:3], (2, 12.0), (3, 13.0), *elapsed[3:]]
    assert points(client, run_of(first), "elapsed") == (both if goes_back else elapsed)
    assert client.get_run(run_of(first)).info.status == "FINISHED"


def test_only_what_is_logged_again_is_taken_for_it(store, client):
    """A step that is named again and again, as by who counts epochs, loses none of its later values."""
    first = MlflowTracker(str(store), "again and again", {})
    for time in (1, 2, 3, 4):
        first.log_batch([Logged({"loss": float(time)}, 0, time)])
    second = MlflowTracker(str(store), "again and again", {}, run_of(first))
    resumption = Resumption(10, 2, 5)  # two of the four came after the checkpoint
    for time in (6, 7, 8, 9):
        second.log_batch([Logged({"loss": float(time)}, 0, time, resumption)])
    assert sorted(value for _, value in points(client, run_of(first), "loss")) == [1, 2, 3, 4, 8, 9]
    third = MlflowTracker(str(store), "again and again", {}, run_of(first))
    third.log_batch([Logged({"loss": 3.0}, 0, 3)])
    third.log_batch([Logged({"loss": 9.0}, 0, 9, resumption)])
    assert len(points(client, run_of(first), "loss")) == 6, "what a process sent and did not note is not doubled either"


def test_a_batch_that_fails_is_not_taken_for_sent(store, client, mlflow, monkeypatch):
    first = MlflowTracker(str(store), "fails between", {})
    sent(first, (1, 2))
    second = MlflowTracker(str(store), "fails between", {}, run_of(first))
    resumption = Resumption(1, 1_001, 2_000)
    with monkeypatch.context() as patched:
        down = mlflow.exceptions.MlflowException("down", mlflow.protos.databricks_pb2.TEMPORARILY_UNAVAILABLE)
        patched.setattr(mlflow.MlflowClient, "log_batch", raising(down))
        for _ in range(3):
            with pytest.raises(Unreachable):
                sent(second, (2, 3), 10, resumption, 3_000)
    sent(second, (2, 3), 10, resumption, 3_000)
    assert points(client, run_of(first), "elapsed") == [(1, 1.0), (2, 2.0), (3, 13.0)]


def test_a_training_has_one_run(store, client):
    """Also where it does not know of it: the answer was lost, or the process that made it was killed."""
    first = MlflowTracker(str(store), "one run", {"lr": 1, "b": 2}, training="t1", run_name="first")
    assert client.get_run(run_of(first)).data.tags["accmt.training"] == "t1"
    first.close("FAILED")
    again = MlflowTracker(str(store), "one run", {"lr": 5, "c": 3}, training="t1", run_name="second")
    assert run_of(again) == run_of(first)
    run = client.get_run(run_of(first))
    assert (run.info.status, run.info.run_name) == ("RUNNING", "first")
    assert run.data.params == {"lr": "1", "b": "2", "c": "3"}
    assert run_of(MlflowTracker(str(store), "one run", {}, training="t2")) != run_of(first)


def test_a_request_that_was_done_twice_leaves_one_run(store, client, mlflow, monkeypatch):
    """A server that does what it was asked after who asked has given up."""
    create = mlflow.MlflowClient.create_run

    def twice(self, *arguments, **keywords):
        create(self, *arguments, **keywords)
        return create(self, *arguments, **keywords)

    monkeypatch.setattr(mlflow.MlflowClient, "create_run", twice)
    tracker = MlflowTracker(str(store), "twice", {}, training="t")
    monkeypatch.undo()
    experiment = client.get_experiment_by_name("twice").experiment_id
    assert [run.info.run_id for run in client.search_runs([experiment])] == [run_of(tracker)]
    create(client, experiment, tags={"accmt.training": "t"})  # comes later still
    tracker.close("FINISHED")
    [run] = client.search_runs([experiment])
    assert (run.info.run_id, run.info.status) == (run_of(tracker), "FINISHED")


def test_an_attempt_that_was_given_up_and_goes_on_all_the_same(store, client, mlflow, monkeypatch):
    """It logs the parameters just before we do."""
    log = mlflow.MlflowClient.log_batch

    def comes_between(self, run_id, **given):
        monkeypatch.setattr(mlflow.MlflowClient, "log_batch", log)
        log(self, run_id, **given)
        raise mlflow.exceptions.MlflowException("UNIQUE constraint failed", mlflow.protos.databricks_pb2.BAD_REQUEST)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", comes_between)
    tracker = MlflowTracker(str(store), "between", {"lr": 1})
    assert client.get_run(run_of(tracker)).data.params == {"lr": "1"}


def test_an_experiment_that_somebody_else_makes_at_the_same_time(store, client, mlflow, monkeypatch):
    client.create_experiment("at the same time")
    found = [None]
    get = mlflow.MlflowClient.get_experiment_by_name
    monkeypatch.setattr(
        mlflow.MlflowClient, "get_experiment_by_name", lambda self, name: found.pop() if found else get(self, name)
    )
    tracker = MlflowTracker(str(store), "at the same time", {})
    assert client.get_run(run_of(tracker)).info.status == "RUNNING"


def test_a_run_that_is_gone_is_made_anew(store, client):
    deleted = MlflowTracker(str(store), "gone", {})
    client.delete_run(run_of(deleted))
    for run_id in (run_of(deleted), "0" * 32, "no id at all"):
        tracker = MlflowTracker(str(store), "gone", {"lr": 1}, run_id)
        assert run_of(tracker) != run_id
        assert client.get_run(run_of(tracker)).data.params == {"lr": "1"}


def raising(error):
    def fails(*arguments, **keywords):
        raise error

    return fails


@pytest.mark.parametrize("code", ["TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"])
def test_a_store_that_does_not_answer_makes_no_second_run(store, mlflow, monkeypatch, code):
    tracker = MlflowTracker(str(store), "down", {})
    down = mlflow.exceptions.MlflowException("the server is down", getattr(mlflow.protos.databricks_pb2, code))
    monkeypatch.setattr(mlflow.MlflowClient, "update_run", raising(down))
    with pytest.raises(Unreachable, match="the server is down"):
        MlflowTracker(str(store), "down", {}, run_of(tracker))
    for name in ("log_batch", "log_artifact", "log_artifacts", "set_terminated"):
        monkeypatch.setattr(mlflow.MlflowClient, name, raising(down))
    for call in (
        lambda: tracker.log({"loss": 1.0}, 1),
        lambda: tracker.log_artifact(store),
        lambda: tracker.log_artifacts(store),
        lambda: tracker.close("FINISHED"),
    ):
        with pytest.raises(Unreachable, match="the server is down"):
            call()


def test_what_is_refused_is_not_taken_for_an_outage(store, client, mlflow, tmp_path):
    tracker = MlflowTracker(str(store), "refusing", {})
    with pytest.raises(mlflow.exceptions.MlflowException, match="too large"):
        tracker.log({"loss": 1.0}, 2**70)
    with pytest.raises(FileNotFoundError):
        tracker.log_artifact(tmp_path / "nothing")
    client.delete_run(run_of(tracker))
    with pytest.raises(mlflow.exceptions.MlflowException, match="must be in the 'active' state"):
        tracker.log({"loss": 1.0}, 1)


def test_a_connection_that_breaks_is_an_outage(store, mlflow, monkeypatch, tmp_path):
    import requests

    tracker = MlflowTracker(str(store), "breaking", {})
    for error in (requests.ConnectionError("broken pipe"), requests.Timeout("broken pipe")):
        monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", raising(error))
        with pytest.raises(Unreachable, match="broken pipe"):
            tracker.log_artifact(tmp_path)


def test_a_batch_that_is_sent_twice_is_there_once(store, client):
    """As when the answer to the first attempt is lost."""
    tracker = MlflowTracker(str(store), "batches", {})
    batch = [Logged({"loss": 1 / step, "nan": math.nan}, step, 1_000_000_500 + step) for step in (1, 2, 3)]
    tracker.log_batch(batch)
    tracker.log_batch(batch)
    found = client.get_metric_history(run_of(tracker), "loss")
    assert [(point.step, point.value, point.timestamp) for point in found] == [
        (1, 1.0, 1_000_000_501),
        (2, 1 / 2, 1_000_000_502),
        (3, 1 / 3, 1_000_000_503),
    ]
    assert [step for step, _ in points(client, run_of(tracker), "nan")] == [1, 2, 3]
    tracker.close("FINISHED")


def test_what_a_run_may_be_given(store, client):
    tracker = MlflowTracker(
        *(str(store), "described", {}),
        **{"run_name": "first", "tags": {"team": "a"}, "description": "*why*", "start_time": 1234},
    )
    run = client.get_run(run_of(tracker))
    assert (run.info.run_name, run.info.start_time) == ("first", 1234)
    assert (run.data.tags["team"], run.data.tags["mlflow.note.content"]) == ("a", "*why*")
    assert set(RUN_ARGUMENTS) == {"run_name", "tags", "description", "start_time"}


def loggers():
    found = [
        logging.root,
        *(log for log in logging.root.manager.loggerDict.values() if isinstance(log, logging.Logger)),
    ]
    return {
        log.name: (log.level, log.disabled, log.propagate, tuple(map(id, log.handlers)), tuple(map(id, log.filters)))
        for log in found
    }


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
    restored = unquote("" if sent == ":" else sent.replace(":", "%"), errors="surrogatepass")
    assert "::" in sent or restored == name


def test_a_real_server(server, mlflow, tmp_path, capfd):
    capfd.readouterr()
    tracker = MlflowTracker(server.address, "over the net", {"lr": 0.1}, run_name="far")
    tracker.log({"loss": 0.5, "recall@10": 0.25}, 7)
    (tmp_path / "notes.txt").write_text("hello")
    tracker.log_artifact(tmp_path / "notes.txt")
    tracker.close("KILLED")
    again = MlflowTracker(f"http://{server.address}", "over the net", {}, run_of(tracker))
    again.log({"loss": 0.125}, 8)
    again.close("FINISHED")
    assert capfd.readouterr() == ("", "")

    client = mlflow.MlflowClient(tracking_uri=f"http://{server.address}")
    run = client.get_run(run_of(tracker))
    assert (run.info.status, run.info.run_name, run.data.params) == ("FINISHED", "far", {"lr": "0.1"})
    assert points(client, run_of(tracker), "loss") == [(7, 0.5), (8, 0.125)]
    assert points(client, run_of(tracker), metric_name("recall@10")) == [(7, 0.25)]
    path = client.download_artifacts(run_of(tracker), "notes.txt", str(tmp_path))
    with open(path, encoding="utf-8") as file:
        assert file.read() == "hello"


@pytest.mark.parametrize(
    ("location", "uri"),
    [
        ("10.0.0.1", "http://10.0.0.1"),
        ("10.0.0.1:5000", "http://10.0.0.1:5000"),
        ("localhost:5000/mlflow", "http://localhost:5000/mlflow"),
        ("http://tracking.example.com", "http://tracking.example.com"),
        ("https://tracking.example.com:443/path", "https://tracking.example.com:443/path"),
    ],
)
def test_where_an_address_leads(mlflow, monkeypatch, tmp_path, location, uri):
    asked, looked = [], []

    class Client:
        def __init__(self, tracking_uri):
            asked.append(tracking_uri)

        def get_experiment_by_name(self, name):
            raise mlflow.exceptions.MlflowException("no route")

    monkeypatch.setattr(mlflow, "MlflowClient", Client)
    monkeypatch.setattr("requests.get", lambda url, **how: looked.append(url) or answer(200))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Unreachable, match="no route"):
        MlflowTracker(location, "experiment", {})
    assert asked == [uri]
    assert looked == [f"{uri}/health"]
    assert not list(tmp_path.iterdir())


def answer(status):
    import requests

    made = requests.Response()
    made.status_code, made.reason = status, "because"
    return made


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        ("ConnectionError", "no connection to http://host:5000"),
        ("ReadTimeout", "http://host:5000 does not answer within 10 seconds"),
        (500, "http://host:5000 answers 500 because"),
        (503, "http://host:5000 answers 503 because"),
    ],
)
def test_a_server_without_a_sign_of_life_is_not_asked_for_more(mlflow, monkeypatch, outcome, text):
    """MLflow would try for minutes. What it says holds no password."""
    import requests

    def get(url, **how):
        if isinstance(outcome, int):
            return answer(outcome)
        raise getattr(requests, outcome)("http://me:secret@host:5000")

    monkeypatch.setattr(requests, "get", get)
    monkeypatch.setattr(mlflow, "MlflowClient", raising(AssertionError("it was asked")))
    with pytest.raises(Unreachable) as caught:
        MlflowTracker("http://me:secret@host:5000", "experiment", {})
    assert str(caught.value) == text


@pytest.mark.parametrize("outcome", [200, 302, 401, 404, "SSLError", "InvalidURL"])
def test_any_other_answer_is_a_sign_of_life(mlflow, monkeypatch, outcome):
    import requests

    def get(url, **how):
        if isinstance(outcome, int):
            return answer(outcome)
        raise getattr(requests.exceptions, outcome)("x")

    monkeypatch.setattr(requests, "get", get)
    monkeypatch.setattr(mlflow, "MlflowClient", raising(AssertionError("it was asked")))
    with pytest.raises(AssertionError, match="it was asked"):
        MlflowTracker("http://host:5000", "experiment", {})


@pytest.mark.parametrize("code", ["PERMISSION_DENIED", "UNAUTHENTICATED", "ENDPOINT_NOT_FOUND"])
def test_a_server_that_has_taken_us_once_may_do_so_again(server, mlflow, monkeypatch, code):
    """As when a password runs out: at the start that is a refusal, later values wait."""
    tracker = MlflowTracker(server.address, "taken once", {})
    no = mlflow.exceptions.MlflowException("no", getattr(mlflow.protos.databricks_pb2, code))
    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", raising(no))
    with pytest.raises(Unreachable, match="no"):
        tracker.log({"loss": 1.0}, 1)
    monkeypatch.setattr(mlflow.MlflowClient, "get_experiment_by_name", raising(no))
    with pytest.raises(mlflow.exceptions.MlflowException, match="no"):
        MlflowTracker(server.address, "taken once", {})


@pytest.mark.parametrize(("status", "passes"), [(500, True), (503, True), (401, True), (400, False)])
def test_an_artifact_that_a_server_does_not_take(store, mlflow, monkeypatch, tmp_path, status, passes):
    import requests

    tracker = MlflowTracker(str(store), "artifacts", {})
    error = requests.HTTPError("no", response=answer(status))
    monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", raising(error))
    with pytest.raises(Unreachable if passes else requests.HTTPError, match="no"):
        tracker.log_artifact(tmp_path)

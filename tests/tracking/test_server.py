"""Trainings whose MLflow server freezes, dies, is not there, or answers nonsense."""

import http.server
import socket
import threading

import pytest

from accmt import Callback
from accmt.tracking import background
from accmt.tracking.mlflow import metric_name
from accmt.tracking.sending import SendingLimits

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class AtStep(Callback):
    def __init__(self, actions):
        self.actions = actions

    def on_after_optimizer_step(self, optimizer):
        self.actions.get(self.state.global_step, lambda: None)()

    def on_fit_end(self):
        self.actions.get("end", lambda: None)()


@pytest.fixture
def runs(mlflow):
    """An address -> a client, and the runs of an experiment there."""

    def of(address, experiment):
        client = mlflow.MlflowClient(tracking_uri=f"http://{address}")
        return client, client.search_runs([client.get_experiment_by_name(experiment).experiment_id])

    return of


def points(client, run, name):
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]


def test_a_training_with_a_server(server, runs, trainer, regression, data, error_metric, tmp_path, capfd):
    (tmp_path / "notes.txt").write_text("hello")
    arguments = {"log_with": "mlflow", "logging_dir": server.address, "metrics": error_metric(), "log_every": 1}
    training = trainer("with-server", **arguments, run_name="far", tags={"team": "a"})
    training.fit(regression(), data(16), {"dev": data(4), "a@b": data(4)})
    training.log_artifact(tmp_path / "notes.txt")
    trainer("with-server", epochs=3, **arguments).fit(regression(), data(16), {"dev": data(4), "a@b": data(4)})
    client, [run] = runs(server.address, "with-server")
    assert (run.info.status, run.info.run_name, run.data.tags["team"]) == ("FINISHED", "far", "a")
    assert run.data.params["optimizer.type"] == "SGD"
    assert [step for step, _ in points(client, run, "train_loss")] == list(range(1, 13))
    assert [step for step, _ in points(client, run, "error_dev")] == [4, 8, 12]
    assert [step for step, _ in points(client, run, metric_name("val_loss_a@b"))] == [4, 8, 12]
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["notes.txt"]
    assert capfd.readouterr().err == ""


def test_parameters_are_what_the_training_is(server, runs, trainer, regression, data, tmp_path, capfd, monkeypatch):
    """More than a server takes in one request; a resumed training changes none of them, as MLflow would refuse."""
    monkeypatch.setattr("sys.argv", ["train.py", "--hf-token", "s3cret"])
    more = {"long": "x" * 7000, "trainer": {"quiet": "mine"}, "epochs": "mine", **{f"more {i}": i for i in range(99)}}
    arguments = {"log_with": "mlflow", "logging_dir": server.address, "additional_tracker_config": more, "log_every": 1}
    trainer("told", seed=3, **arguments).fit(regression(), data(16), {"dev": data(4), "a@b": data(5)})
    client, [run] = runs(server.address, "told")
    told = run.data.params
    assert told["long"] == "x" * 6000
    assert told["more 98"] == "98"
    assert (told["optimizer.type"], told["optimizer.lr"], told["optimizer.momentum"]) == ("SGD", "0.05", "0")
    assert (told["trainer.clip_grad"], told["trainer.evaluate_every"]) == ("1.0", "epoch")
    assert (told["trainer.monitor.epoch"], told["trainer.mixed_precision"]) == ("True", "no")
    assert (told["run.seed"], told["run.processes"], told["run.total_steps"]) == ("3", "1", "8")
    assert (told["run.model.parameters"], told["run.train_samples"]) == ("49", "16")
    assert (told["run.validation_samples.dev"], told[metric_name("run.validation_samples.a@b")]) == ("4", "5")
    assert told["run.rules.best_valid_loss"] == "saves when valid_loss is lower than at its last save"
    assert told["run.command"] == "train.py --hf-token '***'"
    assert {"run.time", "run.host", "run.devices", "run.versions.torch", "run.versions.python"} <= told.keys()
    assert (told["trainer.quiet"], told["epochs"]) == ("mine", "mine"), "the user's own come last"
    assert sorted(name for name in told if name.endswith(("epochs", ".lr"))) == ["epochs", "optimizer.lr"]
    assert "trainer.monitor" not in told, "its fields are"
    assert not [name for name in told if "more" in name and not name.startswith("more ")], "none is there twice"

    trainer("told", epochs=3, lr=0.1, clip_grad=2.0, **arguments).fit(
        regression(), data(16), {"dev": data(4), "a@b": data(5)}
    )
    client, [run] = runs(server.address, "told")
    assert run.data.params == told
    assert [step for step, _ in points(client, run, "train_loss")] == list(range(1, 13))
    assert (run.info.status, capfd.readouterr().err) == ("FINISHED", "")


def test_beside_a_server_files_go_to_a_folder(server, runs, trainer, regression, data, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    monkeypatch.chdir(tmp_path)
    training = trainer("beside", log_with=["mlflow", "tensorboard"], logging_dir=server.address)
    training.fit(regression(), data(8))
    client, [run] = runs(server.address, "beside")
    assert [step for step, _ in points(client, run, "train_loss")] == [2, 4]
    assert len(list((tmp_path / "logs" / "beside").glob("events.out.tfevents.*"))) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beside", "logs"]


def test_a_frozen_server_holds_up_no_step(server, runs, trainer, regression, data):
    """It freezes at step 3 and thaws when all steps are done; then everything is there."""
    done = []

    def thaw():
        done.append(training.state.global_step)
        server.thaw()

    try:
        training = trainer(
            *("frozen",),
            epochs=10,
            log_with="mlflow",
            logging_dir=f"http://{server.address}",
            log_every=1,
            callback=AtStep({3: server.freeze, "end": thaw}),
        )
        training.fit(regression(), data(40), data(4))
    finally:
        server.thaw()
    assert done == [100]
    client, [run] = runs(server.address, "frozen")
    assert run.info.status == "FINISHED"
    assert [step for step, _ in points(client, run, "train_loss")] == list(range(1, 101))
    assert [step for step, _ in points(client, run, "val_loss")] == list(range(10, 101, 10))


def test_a_server_that_stays_frozen_is_left_behind(server, runs, trainer, regression, data, monkeypatch, capsys):
    monkeypatch.setattr(background, "LIMITS", SendingLimits(interval=0.01, end=0.5))
    try:
        training = trainer(
            *("left",),
            log_with="mlflow",
            logging_dir=server.address,
            log_every=1,
            callback=AtStep({1: server.freeze}),
        )
        training.fit(regression(), data(16), data(4))
        assert training.state.finished
    finally:
        server.thaw()
    out = capsys.readouterr().out
    assert "warning: mlflow: not sent yet: " in out
    assert f" to 8), the status FINISHED; it did not answer in time; later: accmt sync {training.model_path} " in out
    assert training.best("best_valid_loss") is not None


@pytest.fixture
def impatient(monkeypatch):
    """Neither MLflow nor we try for long."""
    monkeypatch.setattr(background, "LIMITS", SendingLimits(interval=0.01, pause=0.0, start=0.0))
    for name, value in (("MAX_RETRIES", 1), ("BACKOFF_FACTOR", 0), ("BACKOFF_JITTER", 0)):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", str(value))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_server_that_is_not_there(mlflow, impatient, trainer, regression, data, capfd):
    training = trainer(log_with="mlflow", logging_dir=f"127.0.0.1:{free_port()}", log_every=1)
    training.fit(regression(), data(16), data(4))
    assert training.state.finished
    out, err = capfd.readouterr()
    why = f"no connection to http://{training._options.tracking.logging_dir}"
    assert "warning: mlflow does not answer" in out
    assert (
        f"warning: mlflow: not sent yet: 18 values (steps 1 to 8), the status FINISHED; {why}; "
        f"later: accmt sync {training.model_path} --to {training._options.tracking.logging_dir}\n"
    ) in out
    assert err == ""


class Failing(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(500)

    do_POST = do_GET

    def log_message(self, *arguments):
        pass


def test_a_server_that_answers_500(mlflow, impatient, trainer, regression, data, capfd):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Failing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        training = trainer(log_with="mlflow", logging_dir=f"127.0.0.1:{server.server_port}", log_every=1)
        training.fit(regression(), data(16), data(4))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert training.state.finished
    assert (
        "warning: mlflow: not sent yet: 18 values (steps 1 to 8), the status FINISHED; "
        f"http://127.0.0.1:{server.server_port} answers 500 Internal Server Error; later: accmt sync"
    ) in capfd.readouterr().out


def test_a_server_that_comes_late(server, runs, mlflow, impatient, trainer, regression, data):
    """It is frozen when the training starts; the run is begun when it answers, and everything is in it."""
    server.freeze()
    try:
        training = trainer(
            *("late",),
            log_with="mlflow",
            logging_dir=server.address,
            log_every=1,
            callback=AtStep({5: server.thaw}),
        )
        training.fit(regression(), data(16), data(4))
    finally:
        server.thaw()
    client, [run] = runs(server.address, "late")
    assert run.info.status == "FINISHED"
    assert [step for step, _ in points(client, run, "train_loss")] == list(range(1, 9))


def test_a_deleted_run_does_not_end_the_training(server, runs, mlflow, trainer, regression, data, capsys):
    def delete():
        client, [run] = runs(server.address, "deleted")
        client.delete_run(run.info.run_id)

    training = trainer(
        *("deleted",),
        log_with="mlflow",
        logging_dir=server.address,
        log_every=1,
        callback=AtStep({1: delete}),
    )
    training.fit(regression(), data(16), data(4))
    assert training.state.finished
    out = capsys.readouterr().out
    assert out.count("warning: mlflow: the tracker rejects the values: ") == 1
    assert "must be in the 'active' state" in out
    assert "warning: mlflow: not sent: " in out

"""A training with MLflow as its tracker, in an embedded store."""

import pytest

from accmt import Callback, FunctionMetric, Monitor

mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def runs(folder, experiment):
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    [found] = [e for e in client.search_experiments() if e.name == experiment]
    return client, client.search_runs([found.experiment_id])


def history(client, run, name):
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]


@pytest.mark.proves("Trainer(log_with)", "Trainer(**kwargs)")
def test_a_training_in_mlflow(trainer, regression, data, error_metric, tmp_path, capsys):
    """Names, steps, parameters, tags and status; nothing process-wide is left changed; a resumed training goes on."""
    store = tmp_path / "store"
    uri_before = mlflow.get_tracking_uri()
    arguments = {
        "log_with": "mlflow",
        "logging_dir": str(store),
        "track_name": "experiment",
        "metrics": error_metric(),
        "monitor": Monitor(learning_rate=True, grad_norm=True, cpu_utilization=True, checkpoint=True),
        "additional_tracker_config": {"note": "mine"},
        "log_every": 2,
        "run_name": "first",
        "tags": {"team": "a"},
    }
    training = trainer(**arguments)
    training.fit(regression(), data(16), {"dev": data(4), "test": data(4)})
    assert capsys.readouterr().err == ""
    (tmp_path / "file.txt").write_text("content")
    training.log_artifact(str(tmp_path / "file.txt"))
    client, [run] = runs(store, "experiment")
    assert (run.info.status, run.info.run_name, run.data.tags["team"]) == ("FINISHED", "first", "a")
    assert run.data.params["epochs"] == "2"
    assert run.data.params["optimizer.type"] == "SGD"
    assert run.data.params["note"] == "mine"
    assert [step for step, _ in history(client, run, "train_loss")] == [2, 4, 6, 8]
    assert [step for step, _ in history(client, run, "error_dev")] == [4, 8]
    assert [step for step, _ in history(client, run, "val_loss_test")] == [4, 8]
    assert history(client, run, "learning_rate")[0] == (2, 0.05)
    assert history(client, run, "epoch")[-1] == (8, 2.0)
    assert history(client, run, "checkpoint") == [(4, 1.0), (8, 2.0)]
    assert all(value > 0 for _, value in history(client, run, "grad_norm"))
    assert all(0.01 < value < 100 for _, value in history(client, run, "cpu_utilization"))
    assert all(0 <= value <= 100 for _, value in history(client, run, "cpu_utilization_percent"))
    assert [artifact.path for artifact in client.list_artifacts(run.info.run_id)] == ["file.txt"]
    assert mlflow.get_tracking_uri() == uri_before
    assert mlflow.active_run() is None

    longer = trainer(epochs=3, **arguments)
    longer.fit(regression(), data(16), {"dev": data(4), "test": data(4)})
    client, [run] = runs(store, "experiment")
    assert [step for step, _ in history(client, run, "train_loss")] == [2, 4, 6, 8, 10, 12]


def test_one_dataset_has_plain_names_and_an_error_ends_the_run(trainer, regression, data, tmp_path):
    class Breaks(Callback):
        error: BaseException = ValueError("x")

        def on_epoch_end(self):
            raise self.error

    breaks = Breaks()
    for error, status in ((ValueError("x"), "FAILED"), (KeyboardInterrupt(), "KILLED")):
        breaks.error = error
        score = FunctionMetric("recall@10", lambda p, t: 0.5, greater_is_better=True)
        module = regression()
        module.validation_step = lambda key, batch: {"loss": batch[0].mean(), "recall@10": batch}
        training = trainer(
            status, log_with="mlflow", logging_dir=str(tmp_path / status), metrics=score, callback=breaks
        )
        with pytest.raises(type(error)):
            training.fit(module, data(8), {"dev": data(4)})
        client, [run] = runs(tmp_path / status, status)
        assert run.info.status == status
        assert "val_loss" in run.data.metrics
        assert [step for step, _ in history(client, run, "train_loss")] == [2]
        assert sorted(run.data.metrics) != []

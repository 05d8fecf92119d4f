"""What trackers are told: the track, the parameters, the names of the losses, what a monitor asks for, files."""

import pytest

from accmt import Monitor


@pytest.mark.proves("Trainer(track_name)")
@pytest.mark.parametrize(
    ("path", "arguments", "project"),
    [
        ("model", {}, "model"),
        ("deep/er/named", {"track_name": None}, "named"),
        ("model", {"track_name": "mine"}, "mine"),
    ],
)
def test_the_track_has_the_name_of_the_folder_or_its_own(trainer, regression, data, runs, path, arguments, project):
    trainer(path, epochs=1, log_with="told", **arguments).fit(regression(), data(4))
    assert [run.project for run in runs] == [project]


@pytest.mark.proves("Trainer(log_with)")
def test_without_a_tracker_none_is_begun(trainer, regression, data, runs):
    trainer(epochs=1, log_with=None).fit(regression(), data(4))
    assert runs == []


@pytest.mark.proves("Trainer(additional_tracker_config)")
def test_parameters_are_the_hyperparameters_and_what_is_added(trainer, regression, data, runs):
    hps = {"scheduler": "StepLR", "scheduler_kwargs": {"step_size": 2}}
    trainer("plain", epochs=1, log_with="told", hps=hps).fit(regression(), data(4))
    more = {"team": "red", "seed": 7}
    trainer("more", epochs=1, log_with="told", hps=hps, additional_tracker_config=more).fit(regression(), data(4))
    plain, added = (
        {name: value for name, value in run.parameters.items() if not name.startswith(("run.", "trainer."))}
        for run in runs
    )
    assert (plain["epochs"], plain["optimizer.type"], plain["optimizer.lr"]) == (1, "SGD", 0.05)
    assert (plain["scheduler.type"], plain["scheduler.step_size"]) == ("StepLR", 2)
    assert added == {**plain, **more}


@pytest.mark.proves("Trainer(train_loss_metric_name)", "Trainer(val_loss_metric_name)")
@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({}, {"train_loss", "val_loss"}),
        ({"train_loss_metric_name": "loss/train"}, {"loss/train", "val_loss"}),
        ({"val_loss_metric_name": "loss/val"}, {"train_loss", "loss/val"}),
    ],
)
def test_names_of_the_losses(trainer, regression, data, runs, arguments, names):
    trainer(epochs=1, log_with="told", monitor=Monitor(epoch=False), **arguments).fit(regression(), data(8), data(4))
    assert {name for _, name, _ in runs[0].sent} == names


@pytest.mark.proves("Trainer(monitor)")
@pytest.mark.parametrize("monitor", [Monitor(learning_rate=True, epoch=False), {"learning_rate": True, "epoch": False}])
def test_a_monitor_as_an_object_or_a_dictionary(trainer, regression, data, runs, monitor):
    trainer(epochs=1, log_with="told", log_every=1, monitor=monitor).fit(regression(), data(8), data(4))
    assert {name for _, name, _ in runs[0].sent} == {"learning_rate", "train_loss", "val_loss"}
    assert runs[0].of("learning_rate") == {1: 0.05, 2: 0.05}


@pytest.mark.proves(
    "monitor.Monitor(learning_rate)",
    "monitor.Monitor(epoch)",
    "monitor.Monitor(grad_norm)",
    "monitor.Monitor(cpu_utilization)",
    "monitor.Monitor(checkpoint)",
)
def test_what_the_values_of_a_monitor_are(trainer, regression, data, runs):
    monitor = Monitor(learning_rate=True, grad_norm=True, checkpoint=True, cpu_utilization=True)
    hps = {"scheduler": "ExponentialLR", "scheduler_kwargs": {"gamma": 0.5}}
    arguments = {"log_every": 1, "clip_grad": 1e-6, "evaluate_every_n_steps": 2, "checkpoint_every": "2 steps"}
    trainer(epochs=1, log_with="told", monitor=monitor, hps=hps, **arguments).fit(regression(), data(16), data(4))
    [run] = runs
    assert run.of("learning_rate") == pytest.approx({1: 0.025, 2: 0.0125, 3: 0.00625, 4: 0.003125})
    assert run.of("epoch") == {1: 0.25, 2: 0.5, 3: 0.75, 4: 1.0}
    assert run.of("checkpoint") == {2: 1, 4: 2}
    assert min(run.of("grad_norm").values()) > 1e-3, "before it is clipped"
    assert run.of("val_loss").keys() == {2, 4}
    assert all(0 < value < 1000 for value in run.of("cpu_utilization").values())


def shown(folder, name):
    """(step, value) of a name in the event files of a folder."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [(event.step, event.value) for event in EventAccumulator(str(folder)).Reload().Scalars(name)]


@pytest.mark.proves("Trainer(logging_dir)", "Trainer(log_with)", "Trainer(**kwargs)")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("arguments", [{}, {"logging_dir": "elsewhere"}])
def test_logs_are_in_the_folder_of_logging(trainer, regression, data, tmp_path, monkeypatch, arguments):
    """`logs` in the current folder, or where it is said."""
    monkeypatch.chdir(tmp_path)
    training = trainer(log_with="tensorboard", log_every=2, run_name="first", **arguments)
    training.fit(regression(), data(8), data(4))
    folder = tmp_path / arguments.get("logging_dir", "logs")
    assert [step for step, _ in shown(folder / "model" / "first", "train_loss")] == [2, 4]
    assert {path.name for path in tmp_path.iterdir()} == {"model", folder.name}


@pytest.mark.proves(
    "Trainer.log_artifact",
    "Trainer.log_artifact(path)",
    "Trainer.log_artifacts",
    "Trainer.log_artifacts(path)",
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_files_and_folders_go_to_the_run(trainer, regression, data, tmp_path):
    """One file, or all of a folder, with what is below it; as text or path, in a training or after it."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    for name in ("notes.txt", "plots/a.txt", "plots/deep/b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(name)
    training = trainer(epochs=1, log_with="tensorboard", logging_dir=str(tmp_path / "logs"))
    training.fit(regression(), data(8))
    training.log_artifact(str(tmp_path / "notes.txt"))
    training.log_artifacts(tmp_path / "plots")
    kept = tmp_path / "logs" / "model" / "artifacts"
    found = {str(path.relative_to(kept)): path.read_text() for path in kept.rglob("*") if path.is_file()}
    assert found == {"notes.txt": "notes.txt", "a.txt": "plots/a.txt", "deep/b.txt": "plots/deep/b.txt"}


def test_before_a_training_there_is_no_run_for_files(trainer, tmp_path):
    training = trainer()
    training.log_artifact(tmp_path / "nothing.txt")
    training.log_artifacts(tmp_path)
    assert list(tmp_path.iterdir()) == []

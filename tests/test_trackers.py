"""A training and its trackers: several at once, slow ones, dead ones, and those that are continued."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from waiting import waiting_in

from accmt import Callback, ConfigError, Monitor
from accmt.checkpoint.stateful import Mismatch
from accmt.cli.main import main
from accmt.tracking import background
from accmt.tracking.outbox import FOLDER
from accmt.tracking.sending import SendingLimits

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class Mine(GeneralTracker):
    """A tracker of a user that keeps what it is sent and can be held up."""

    name = "mine"
    requires_logging_directory = False
    free = threading.Event()
    entered = threading.Event()

    def __init__(self, project, name="", refuse=False):
        super().__init__()
        if refuse:
            raise PermissionError("not yours")
        self.told = [(project, name)]
        RUNS.append(self)

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        self.told.append(values)

    def log(self, values, step=None, **kwargs):
        self.entered.set()
        assert self.free.wait(300)
        self.told.append((step, values))

    def finish(self):
        self.told.append("finish")


RUNS: list[Mine] = []


@pytest.fixture(autouse=True)
def _mine(monkeypatch):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "mine", Mine)
    RUNS.clear()
    Mine.free.set()
    Mine.entered.clear()


def sent(run, name):
    return [(entry[0], entry[1][name]) for entry in run.told if isinstance(entry, tuple) and name in entry[1]]


def shown(folder, name):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [(event.step, event.value) for event in EventAccumulator(str(folder)).Reload().Scalars(name)]


class At(Callback):
    """Does something after a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_after_optimizer_step(self, optimizer):
        if self.state.global_step == self.step:
            self.action()


class AtEnd(Callback):
    def __init__(self, action):
        self.action = action

    def on_fit_end(self):
        self.action()


def test_several_trackers_at_once(trainer, regression, data, tmp_path):
    """And arguments for all of them, or for one."""
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    (tmp_path / "notes.txt").write_text("hello")
    training = trainer(
        log_with=["mlflow", "tensorboard", "mine"],
        logging_dir=str(tmp_path / "logs"),
        log_every=2,
        run_name="first",
        mine={"name": "red"},
    )
    training.fit(regression(), data(16), data(4))
    training.log_artifact(tmp_path / "notes.txt")
    assert [step for step, _ in shown(tmp_path / "logs" / "model" / "first", "train_loss")] == [2, 4, 6, 8]
    assert [step for step, _ in shown(tmp_path / "logs" / "model" / "first", "val_loss")] == [4, 8]
    [mine] = RUNS
    assert mine.told[0] == ("model", "red")
    assert mine.told[1]["optimizer.type"] == "SGD"
    assert [step for step, _ in sent(mine, "train_loss")] == [2, 4, 6, 8]
    assert mine.told[-1] == "finish"
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'logs' / 'mlflow.db'}")
    [run] = client.search_runs([client.get_experiment_by_name("model").experiment_id])
    assert (run.info.run_name, run.info.status) == ("first", "FINISHED")
    assert [point.value for point in client.get_metric_history(run.info.run_id, "train_loss")] == pytest.approx(
        [value for _, value in sent(mine, "train_loss")]
    )
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["notes.txt"]
    assert (tmp_path / "logs" / "model" / "first" / "artifacts" / "notes.txt").read_text() == "hello"


def test_steps_go_on_while_the_tracker_is_held_up(trainer, regression, data):
    """The first call to the tracker returns only after the last step, and nothing is lost or out of order."""
    Mine.free.clear()
    seen = []

    def finish():
        assert Mine.entered.wait(300)
        seen.extend([training.state.global_step, list(RUNS[0].told[2:])])
        Mine.free.set()

    training = trainer(epochs=5, log_with="mine", log_every=1, callback=AtEnd(finish))
    training.fit(regression(), data(40), data(4))
    assert seen == [50, []]
    assert [step for step, _ in sent(RUNS[0], "train_loss")] == list(range(1, 51))
    assert [step for step, _ in sent(RUNS[0], "val_loss")] == [10, 20, 30, 40, 50]
    steps = [entry[0] for entry in RUNS[0].told[2:-1]]
    assert steps == sorted(steps)


def test_a_tracker_that_never_returns_is_left_behind(trainer, regression, data, monkeypatch, capsys):
    monkeypatch.setattr(background, "LIMITS", SendingLimits(interval=0.01, end=0.0, artifact=0.0))
    Mine.free.clear()
    training = trainer(log_with="mine", log_every=1)
    training.fit(regression(), data(16), data(4))
    assert training.state.finished
    assert (
        "warning: mine: not sent yet: 18 values (steps 1 to 8), the status FINISHED; it did not answer in time; "
        f"later: accmt sync {training.model_path} --to mine --to {Path('logs').absolute()}\n"
    ) in capsys.readouterr().out
    Mine.free.set()


def test_a_process_ends_although_its_tracker_does_not(tmp_path):
    program = """
import threading, torch
from accelerate.tracking import GeneralTracker, register_tracker_class
from accmt import HyperParameters, Trainer
from accmt.checkpoint.stateful import Mismatch
from accmt.cli.main import main
from accmt.tracking import background
from accmt.tracking.sending import SendingLimits
from conftest import Regression, make_data

class Mine(GeneralTracker):
    name, requires_logging_directory, tracker = "mine", False, None
    def __init__(self, project):
        super().__init__()
    def log(self, values, step=None, **kwargs):
        threading.Event().wait()

register_tracker_class(Mine)
background.LIMITS = SendingLimits(interval=0.01, end=0.0)
trainer = Trainer(HyperParameters(batch_size=4), "model", log_with="mine", dataloader_num_workers=0)
trainer.fit(Regression(), make_data(8))
"""
    (tmp_path / "program.py").write_text(program)
    folders = Path(__file__).parent, Path(__file__).with_name("support")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    ran = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (
        "warning: mine: not sent yet: 2 values (step 2), the status FINISHED; it did not answer in time; "
        f"later: accmt sync model --to mine --to {tmp_path / 'logs'}\n"
    ) in ran.stdout


def test_a_new_training_does_not_start_when_its_tracker_refuses(trainer, regression, data):
    training = trainer(log_with=["mine"], refuse=True)
    with pytest.raises(ConfigError) as caught:
        training.fit(regression(), data(8))
    assert str(caught.value) == ("1 mistake in fit(...):\n  log_with: mine cannot be used: PermissionError: not yours")
    assert training.state.global_step == 0
    assert not list(training.model_path.rglob("history.jsonl"))


def test_when_one_of_several_refuses_the_others_end_their_runs(trainer, regression, data, monkeypatch):
    other = type("Other", (Mine,), {"name": "other"})
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "other", other)
    with pytest.raises(ConfigError, match="mine cannot be used"):
        trainer(log_with=["other", "mine"], mine={"refuse": True}).fit(regression(), data(8))
    assert RUNS[0].told[-1] == "finish"


def test_a_continued_training_goes_on_without_a_tracker_that_refuses(trainer, regression, data, capsys):
    trainer(log_with="mine").fit(regression(), data(8))
    longer = trainer(epochs=3, log_with="mine", refuse=True)
    longer.fit(regression(), data(8))
    assert longer.state.global_step == 6
    out = capsys.readouterr().out
    assert "warning: mine cannot be used: PermissionError: not yours; the training continues without it\n" in out
    assert (
        "warning: mine: not sent yet: 2 values (step 6), the status FINISHED; PermissionError: not yours; "
        f"later: accmt sync {longer.model_path} --to mine --to {Path('logs').absolute()}\n"
    ) in out


@pytest.fixture
def left_behind(trainer, regression, data, monkeypatch):
    """A training of eight steps that has ended, and whose tracker was told nothing of it."""
    with monkeypatch.context() as patched:
        patched.setattr(background, "LIMITS", SendingLimits(interval=0.01, end=0.0))
        Mine.free.clear()
        training = trainer(log_with="mine", log_every=1, multiple_checkpoints=True)
        training.fit(regression(), data(16), data(4))
    Mine.free.set()
    for thread in threading.enumerate():
        if thread.name == "tracker mine":
            thread.join()
    RUNS.clear()
    return training


def test_a_training_that_is_continued_sends_what_waited(left_behind, trainer, regression, data, capsys):
    trainer(epochs=3, log_with="mine", log_every=1).fit(regression(), data(16), data(4))
    [mine] = RUNS
    assert [step for step, _ in sent(mine, "train_loss")] == list(range(1, 13))
    assert [step for step, _ in sent(mine, "val_loss")] == [4, 8, 12]
    assert "not sent" not in capsys.readouterr().out.split("continuing from")[1]
    assert not (left_behind.model_path / FOLDER).exists()


def test_a_training_that_goes_back_drops_what_it_logs_again(left_behind, trainer, regression, data):
    trainer(log_with="mine", log_every=1, multiple_checkpoints=True, resume=1).fit(regression(), data(16), data(4))
    [mine] = RUNS
    assert [step for step, _ in sent(mine, "train_loss")][-8:] == list(range(1, 9))
    assert not (left_behind.model_path / FOLDER).exists()


def test_a_training_that_cannot_be_continued_leaves_what_waits(left_behind, trainer, regression, data):
    module = regression()
    module.model = torch.nn.Linear(4, 1)
    with pytest.raises(Mismatch):
        trainer(log_with="mine").fit(module, data(16), data(4))
    assert list(waiting_in(left_behind.model_path).values()) == ["18 values (steps 1 to 8), the status FINISHED"]


@pytest.mark.parametrize("arguments", [{"log_with": "mine", "resume": False}, {}])
def test_another_training_leaves_what_waits_and_says_so(left_behind, trainer, regression, data, capsys, arguments):
    trainer(**arguments).fit(regression(), data(16), data(4))
    command = f"accmt sync {left_behind.model_path}"
    assert (
        "warning: mine: 18 values (steps 1 to 8), the status FINISHED of an earlier run still wait to be sent; "
        f"when this training is over: {command}\n"
    ) in capsys.readouterr().out
    assert main(command.split()[1:]) == 1, "it names no place"
    assert main([*command.split()[1:], "--to", "mine", "--to", "logs"]) == 0
    assert [step for step, _ in sent(RUNS[-1], "train_loss")] == list(range(1, 9))


def test_tensorboard_goes_on_where_the_checkpoint_was(trainer, regression, data, tmp_path):
    """What was logged between the checkpoint and the crash is there once."""

    def crash():
        raise RuntimeError("crash")

    arguments = {"log_with": "tensorboard", "logging_dir": str(tmp_path / "logs"), "log_every": 1}
    with pytest.raises(RuntimeError, match="crash"):
        trainer(epochs=3, callback=At(7, crash), **arguments).fit(regression(), data(16), data(4))
    before = shown(tmp_path / "logs" / "model", "train_loss")
    assert [step for step, _ in before] == [1, 2, 3, 4, 5, 6, 7]
    trainer(epochs=3, **arguments).fit(regression(), data(16), data(4))
    after = shown(tmp_path / "logs" / "model", "train_loss")
    assert [step for step, _ in after] == list(range(1, 13))
    assert after[:7] == before, "the steps that were repeated came out as before"
    assert [step for step, _ in shown(tmp_path / "logs" / "model", "val_loss")] == [4, 8, 12]


def test_values_of_a_module_and_artifacts_of_a_callback(trainer, regression, data, tmp_path):
    """They arrive in the order in which they were logged, and a file may change afterwards."""

    class Logging(regression):
        def training_step(self, batch):
            loss = super().training_step(batch)
            self.log({"double": 2 * loss}, self.state.global_step)
            self.tracker.log({"text": "no number", "always": 1}, self.state.global_step)
            return loss

    class Writing(Callback):
        def on_epoch_end(self):
            path = tmp_path / f"epoch-{self.state.epoch}.txt"
            path.write_text("content")
            self.trainer.log_artifact(path)
            path.unlink()

    arguments = {"log_with": "tensorboard", "logging_dir": str(tmp_path / "logs"), "log_every": 2}
    trainer(callback=Writing(), **arguments).fit(Logging(), data(16))
    folder = tmp_path / "logs" / "model"
    assert sorted(path.name for path in (folder / "artifacts").iterdir()) == ["epoch-0.txt", "epoch-1.txt"]
    assert [step for step, _ in shown(folder, "double")] == [0, 2, 4, 6]
    assert [step for step, _ in shown(folder, "always")] == list(range(8))


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_training_leaves_no_thread_behind(trainer, regression, data, tmp_path, name):
    pytest.importorskip(name, reason=f"{name} is not installed")
    before = threading.active_count()
    trainer(log_with=name, logging_dir=str(tmp_path / "logs")).fit(regression(), data(8))
    assert not [thread.name for thread in threading.enumerate() if thread.name == f"tracker {name}"]
    assert threading.active_count() == before


def test_without_a_tracker_nothing_is_logged_anywhere(trainer, regression, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    training = trainer(monitor=Monitor(cpu_utilization=True))
    training.fit(regression(), data(8))
    training.log_artifact("nothing")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]

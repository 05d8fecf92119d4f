"""Trackers of Accelerate: TensorBoard for real, and one that was registered by its user."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from accmt.tracking.accelerate_trackers import AccelerateTracker, TensorBoardTracker
from accmt.tracking.tracker import Beginning, NoArtifacts

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning")]
ROOT = Path(__file__).resolve().parents[2]
PARAMETERS = {"lr": 0.1, "optimizer": {"type": "AdamW", "betas": [0.9, 0.99]}, "none": None, "nesterov": True}
PLAIN = {"lr": 0.1, "optimizer.type": "AdamW", "optimizer.betas": "[0.9, 0.99]", "none": "None", "nesterov": True}


@pytest.fixture(autouse=True)
def _state():
    PartialState(cpu=True)


@pytest.fixture
def accumulator():
    """A folder -> what TensorBoard shows of it."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def load(folder):
        return EventAccumulator(str(folder)).Reload()

    return load


def points(accumulator, name):
    return [(event.step, event.value) for event in accumulator.Scalars(name)]


def beginning(folder, former=None, step=None):
    return Beginning(str(folder), "model", PARAMETERS, former or {}, step)


def test_tensorboard(tmp_path, accumulator):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "config.json").write_text("{}")
    tracker = TensorBoardTracker(beginning(tmp_path / "logs"), {})
    tracker.log({"loss": 0.5, "recall@10": 0.25}, 1)
    tracker.log({"loss": float("nan")}, 2)
    tracker.log_artifact(tmp_path / "notes.txt")
    tracker.log_artifacts(tmp_path / "weights")
    tracker.close("FINISHED")
    tracker.log_artifacts(tmp_path / "weights")
    shown = accumulator(tmp_path / "logs" / "model")
    assert points(shown, "recall@10") == [(1, 0.25)]
    assert points(shown, "loss")[0] == (1, 0.5)
    assert [step for step, _ in points(shown, "loss")] == [1, 2]
    artifacts = tmp_path / "logs" / "model" / "artifacts"
    assert sorted(path.name for path in artifacts.iterdir()) == ["config.json", "notes.txt"]
    assert "hello" in (artifacts / "notes.txt").read_text()


def test_tensorboard_shows_the_parameters(tmp_path, accumulator):
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    TensorBoardTracker(beginning(tmp_path), {}).close("FINISHED")
    [file] = [path for path in (tmp_path / "model").glob("*/events.out.tfevents.*")]
    content = accumulator(file.parent).SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    info = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    shown = {name: value.string_value or value.number_value or value.bool_value for name, value in info.hparams.items()}
    assert shown == PLAIN


def test_each_new_training_has_its_own_folder(tmp_path, accumulator):
    for number in (1, 2, 3):
        tracker = TensorBoardTracker(beginning(tmp_path), {})
        tracker.log({"loss": number}, 1)
        tracker.close("FINISHED")
    named = TensorBoardTracker(beginning(tmp_path), {"run_name": "first try"})
    named.log({"loss": 4}, 1)
    named.close("FINISHED")
    for number, folder in enumerate(("model", "model-2", "model-3", "model/first try"), 1):
        assert points(accumulator(tmp_path / folder), "loss") == [(1, number)]


def test_tensorboard_goes_on_without_doubling_points(tmp_path, accumulator):
    first = TensorBoardTracker(beginning(tmp_path), {})
    for step in range(1, 7):
        first.log({"loss": step}, step)
    first.close("FAILED")
    time.sleep(1.1 - time.time() % 1)  # files are read in the order of their names, which begin with the second
    second = TensorBoardTracker(beginning(tmp_path, first.state(), 4), {"run_name": "ignored"})
    for step in range(5, 9):
        second.log({"loss": step * 10}, step)
    second.close("FINISHED")
    assert second.state() == first.state() == {"tensorboard": {"folder": "model"}}
    shown = points(accumulator(tmp_path / "model"), "loss")
    assert shown == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 50), (6, 60), (7, 70), (8, 80)]
    assert len([path for path in (tmp_path / "model").iterdir() if path.is_dir()]) == 2, "parameters are logged once"


MADE = []


class Mine(GeneralTracker):
    """A tracker of a user, that keeps what it is told."""

    name = "mine"
    requires_logging_directory = True

    def __init__(self, project, logging_dir, color="blue"):
        super().__init__()
        self.told = [("made", project, logging_dir, color)]
        MADE.append(self)

    def start(self):
        self.told.append("start")

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        self.told.append(("parameters", values))

    def log(self, values, step=None, **kwargs):
        self.told.append(("log", values, step))

    def finish(self):
        self.told.append("finish")


def test_one_that_was_registered(tmp_path, monkeypatch):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "mine", Mine)
    tracker = AccelerateTracker("mine", beginning(tmp_path), {"color": "red"})
    tracker.log({"loss": 1.5}, 3)
    tracker.close("FINISHED")
    assert MADE[-1].told == [
        ("made", "model", str(tmp_path), "red"),
        "start",
        ("parameters", PLAIN),
        ("log", {"loss": 1.5}, 3),
        "finish",
    ]
    assert tracker.state() == {"mine": {}}
    with pytest.raises(NoArtifacts, match="only MLflow and TensorBoard keep artifacts"):
        tracker.log_artifact(tmp_path)
    with pytest.raises(NoArtifacts, match="only MLflow and TensorBoard keep artifacts"):
        tracker.log_artifacts(tmp_path)
    again = AccelerateTracker("mine", beginning(tmp_path, {"mine": {}}, 3), {})
    again.close("FINISHED")
    assert ("parameters", PLAIN) not in MADE[-1].told, "a run that is continued has its parameters"


def test_a_tool_is_told_where_and_how_to_go_on(tmp_path, monkeypatch):
    """For wandb: the folder, the name of the run, its identity, its end."""
    told = []

    class Run:
        id = "abc"

        def finish(self, exit_code=None):
            told.append(("exit code", exit_code))

    class Wandb(GeneralTracker):
        name = "wandb"
        requires_logging_directory = False

        def __init__(self, project, **arguments):
            super().__init__()
            told.append((project, arguments))

        @property
        def tracker(self):
            return Run()

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Wandb)
    tracker = AccelerateTracker("wandb", beginning(tmp_path), {"run_name": "first", "tags": ["a"]})
    tracker.close("FAILED")
    again = AccelerateTracker("wandb", beginning(tmp_path, tracker.state(), 3), {"run_name": "first"})
    again.close("FINISHED")
    assert told == [
        ("model", {"name": "first", "tags": ["a"], "dir": str(tmp_path / "model")}),
        ("exit code", 1),
        ("model", {"name": "first", "dir": str(tmp_path / "model"), "id": "abc", "resume": "allow"}),
        ("exit code", 0),
    ]
    assert (tmp_path / "model").is_dir()


def test_tensorboard_is_imported_when_it_is_used():
    code = (
        "import sys, accmt.tracking.tracker_arguments; print([name for name in sys.modules if 'tensorboard' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

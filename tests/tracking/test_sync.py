"""`accmt sync` sends what waits, once, says what it did, and leaves what it cannot send."""

import math
import os
import re
import socket
import subprocess
import sys
import threading

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from servers import syncing
from waiting import waiting_in

from accmt.cli.main import main
from accmt.tracking.outbox import FOLDER
from accmt.tracking.records import Artifact, RunEnd
from accmt.tracking.tracker import Logged, Resumption

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

PARAMETERS = {"lr": 0.1, "optimizer.type": "AdamW", "none": "None"}
ARGUMENTS = {"run_name": "first", "tags": {"team": "a"}, "description": "*why*"}


@pytest.fixture
def model(tmp_path):
    return tmp_path / "model"


@pytest.fixture(scope="module")
def store(tmp_path_factory, mlflow):
    """A folder with a store; making its database takes seconds."""
    from accmt.tracking.mlflow import MlflowTracker

    folder = tmp_path_factory.mktemp("store")
    MlflowTracker(str(folder), "first", {}).close("FINISHED")
    return folder


@pytest.fixture
def runs(mlflow, store):
    """An experiment -> a client, and its runs."""

    def of(experiment):
        client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{store / 'mlflow.db'}")
        return client, client.search_runs([client.get_experiment_by_name(experiment).experiment_id])

    return of


@pytest.fixture
def waiting(leave, store):
    """Entries -> an outbox with them."""

    def fill(*entries, tracker="mlflow", location=None, experiment="synced", arguments=ARGUMENTS, **given):
        facts = {"experiment": experiment, "parameters": PARAMETERS, "arguments": arguments, **given}
        leave(*entries, tracker=tracker, location=location or store, **facts)

    return fill


def values(*steps):
    return [Logged({"loss": 1 / step}, step, 1_000 + step) for step in steps]


def sync(model, capfd, *arguments):
    """The exit status, and what was written. All places are named, and artifacts beside the folder allowed."""
    capfd.readouterr()
    status = main([*syncing(model), *arguments])
    return status, *capfd.readouterr()


def points(client, run, name):
    return [(point.step, point.value, point.timestamp) for point in client.get_metric_history(run.info.run_id, name)]


def test_all_of_a_run_that_was_never_begun(waiting, runs, store, model, tmp_path, capfd):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "w.bin").write_text("0")
    files = [Artifact(tmp_path / "notes.txt", False, 1_500), Artifact(tmp_path / "weights", True, 1_501)]
    waiting(*values(1, 2), *files, *values(3), RunEnd("FAILED", 2_000), experiment="never begun")
    status, out, err = sync(model, capfd)
    assert (status, err) == (0, "")
    assert out == f"mlflow at {store}: sent 3 values (steps 1 to 3), 2 artifacts, the status FAILED\n"
    client, [run] = runs("never begun")
    assert points(client, run, "loss") == [(1, 1.0, 1_001), (2, 0.5, 1_002), (3, 1 / 3, 1_003)]
    assert run.data.params == {"lr": "0.1", "optimizer.type": "AdamW", "none": "None"}
    assert (run.info.run_name, run.data.tags["team"]) == ("first", "a")
    assert run.data.tags["mlflow.note.content"] == "*why*"
    assert (run.info.status, run.info.start_time, run.info.end_time) == ("FAILED", 1_000, 2_000)
    assert sorted(file.path for file in client.list_artifacts(run.info.run_id)) == ["notes.txt", "w.bin"]
    assert not (model / FOLDER).exists()
    assert sync(model, capfd) == (0, f"{model}: nothing is waiting to be sent\n", "")
    assert len(runs("never begun")[1]) == 1


def test_a_run_that_was_begun_is_gone_on_with(waiting, runs, store, model, capfd):
    from accmt.tracking.mlflow import MlflowTracker

    first = MlflowTracker(str(store), "begun", {"lr": 1})
    first.log_batch(values(1, 2))
    waiting(*values(2, 3), RunEnd("FINISHED", 2_000), experiment="begun", run=first.state()["mlflow"])
    assert sync(model, capfd)[0] == 0
    client, [run] = runs("begun")
    assert [step for step, *_ in points(client, run, "loss")] == [1, 2, 3], "what was sent and not noted is there once"
    assert (run.info.status, run.data.params) == ("FINISHED", {"lr": "1"})


def test_a_training_that_was_killed_has_such_a_run(waiting, runs, store, model, capfd):
    """It ended when it wrote last."""
    waiting(*values(1), experiment="killed")
    os.utime(model / FOLDER / "0001.jsonl", (5_000.25, 5_000.25))
    assert sync(model, capfd) == (0, f"mlflow at {store}: sent 1 value (step 1), the status KILLED\n", "")
    _, [run] = runs("killed")
    assert (run.info.status, run.info.end_time) == ("KILLED", 5_000_250)


def test_values_that_a_continued_training_logged_again(waiting, runs, store, model, capfd):
    """The run has them from the first process; of those that waited, the ones after the checkpoint come once."""
    from accmt.tracking.mlflow import MlflowTracker

    first = MlflowTracker(str(store), "again", {})
    first.log_batch([Logged({"elapsed": float(step)}, step, 1_000 + step) for step in (1, 2, 3)])
    waiting(*values(4), experiment="again", run=first.state()["mlflow"])
    resumption = Resumption(1, 1_001, 2_000)
    again = [Logged({"elapsed": step + 10.0, "loss": 0.0}, step, 3_000 + step) for step in (2, 3, 4, 5)]
    waiting(*again, experiment="again", resumption=resumption)
    assert sync(model, capfd)[0] == 0
    client, [run] = runs("again")
    assert [point[:2] for point in points(client, run, "elapsed")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 14.0),
        (5, 15.0),
    ]
    assert [point[:2] for point in points(client, run, "loss")] == [(2, 0.0), (3, 0.0), (4, 0.0), (5, 0.0)]


def test_an_artifact_that_is_gone_is_said_once(waiting, runs, store, model, tmp_path, capfd):
    gone = tmp_path / "gone.txt"
    waiting(Artifact(gone, False, 1), *values(1), RunEnd("FINISHED", 2), experiment="gone")
    status, out, err = sync(model, capfd)
    assert (status, out) == (1, f"mlflow at {store}: sent 1 value (step 1), the status FINISHED\n")
    assert err == (
        f"mlflow at {store}: '{gone}' no longer exists\nmlflow at {store}: cannot be sent: 1 artifact; '{gone}' no "
        f"longer exists\n"
    )
    assert sync(model, capfd) == (0, f"{model}: nothing is waiting to be sent\n", "")


def test_a_value_that_is_refused_is_said_once(waiting, runs, store, model, capfd):
    waiting(*values(1), Logged({"loss": 1.0}, 2**70, 1), *values(2), RunEnd("FINISHED", 2), experiment="refused")
    status, out, err = sync(model, capfd)
    assert (status, out) == (1, f"mlflow at {store}: sent 2 values (steps 1 to 2), the status FINISHED\n")
    assert err.startswith(f"mlflow at {store}: cannot be sent: 1 value (step {2**70}); ")
    assert not (model / FOLDER).exists()


def test_what_does_not_answer_keeps_what_waits(waiting, model, capfd, mlflow):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"me:secret@127.0.0.1:{probe.getsockname()[1]}"
    waiting(*values(1, 2), RunEnd("FINISHED", 2), location=f"http://{address}")
    plain = f"http://{address.removeprefix('me:secret@')}"
    for _ in range(2):
        assert sync(model, capfd) == (
            *(1, ""),
            f"mlflow at {plain}: still waiting: 2 values (steps 1 to 2), the status FINISHED; no connection to "
            f"{plain}\n",
        )


def test_a_server_that_hangs_has_a_bounded_time(server, waiting, model, capfd):
    waiting(*values(1, 2), RunEnd("FINISHED", 2), location=server.address, experiment="hangs")
    server.freeze()
    try:
        # In a process of its own: its thread that still waits for the server must not go on beside the next one.
        command = [sys.executable, "-m", "accmt.cli.main", *syncing(model), "--timeout", "1"]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        server.thaw()
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == (
        f"mlflow at {server.address}: still waiting: 2 values (steps 1 to 2), the status FINISHED; "
        "it did not answer in time\n"
    )
    expected = f"mlflow at {server.address}: sent 2 values (steps 1 to 2), the status FINISHED\n"
    assert sync(model, capfd) == (0, expected, "")


def test_several_trackers_and_one_of_them_cannot(waiting, runs, store, model, capfd):
    waiting(*values(1), RunEnd("FINISHED", 2), experiment="several")
    waiting(*values(1, 2), RunEnd("FINISHED", 2), tracker="mine")
    status, out, err = sync(model, capfd)
    assert (status, out) == (1, f"mlflow at {store}: sent 1 value (step 1), the status FINISHED\n")
    assert err == (
        f"mine at {store}: still waiting: 2 values (steps 1 to 2), the status FINISHED; "
        "ValueError: 'mine' is a tracker that the training registered: continue the training\n"
    )
    assert list(waiting_in(model).values()) == ["2 values (steps 1 to 2), the status FINISHED"]


class Mine(GeneralTracker):
    name, requires_logging_directory, tracker = "mine", False, None
    told: list = []  # noqa: RUF012

    def __init__(self, project, **arguments):
        super().__init__()
        self.told.append((project, arguments))

    def log(self, values, step=None, **kwargs):
        self.told.append((step, values))

    def finish(self):
        self.told.append("finish")


def test_a_tracker_that_accelerate_knows(waiting, model, capfd, monkeypatch, store):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "mine", Mine)
    Mine.told.clear()
    waiting(*values(1, 2), RunEnd("FINISHED", 2), tracker="mine", arguments={"color": "red"})
    expected = f"mine at {store}: sent 2 values (steps 1 to 2), the status FINISHED\n"
    assert sync(model, capfd) == (0, expected, "")
    assert Mine.told == [("synced", {"color": "red"}), (1, {"loss": 1.0}), (2, {"loss": 0.5}), "finish"]


def test_arguments_that_could_not_be_written_down(waiting, model, capfd, monkeypatch):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "mine", Mine)
    waiting(*values(1), tracker="mine", arguments=None)
    status, _, err = sync(model, capfd)
    assert status == 1
    assert "the arguments of the run are objects that only the training has: continue the training\n" in err


def test_tensorboard_shows_what_waited_and_what_it_had(waiting, model, capfd, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    logs = tmp_path / "logs"
    with SummaryWriter(str(logs / "experiment")) as writer:
        writer.add_scalar("loss", 9.0, 1)
    waiting(*values(2, 3), tracker="tensorboard", location=logs, arguments={}, run={"folder": "experiment"})
    expected = f"tensorboard at {logs}: sent 2 values (steps 2 to 3), the status KILLED\n"
    assert sync(model, capfd) == (0, expected, "")
    shown = EventAccumulator(str(logs / "experiment")).Reload()
    assert [(event.step, event.value) for event in shown.Scalars("loss")] == [
        *((1, 9.0), (2, 0.5), (3, pytest.approx(1 / 3)))
    ]


def test_damaged_files_are_said_and_left(waiting, runs, store, model, capfd):
    waiting(*values(1, 2), RunEnd("FINISHED", 2), experiment="damaged")
    path = model / FOLDER / "0001.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"nonsense\n", *lines[2:]]))
    (model / FOLDER / "0002.jsonl").write_text("nonsense\n")
    status, out, err = sync(model, capfd)
    assert (status, out) == (1, f"mlflow at {store}: sent 1 value (step 2), the status FINISHED\n")
    assert err.splitlines()[0].startswith(f"{model / FOLDER / '0002.jsonl'} is damaged: ")
    assert err.splitlines()[1] == f"mlflow at {store}: cannot be sent: 1 damaged line"
    assert [path.name for path in (model / FOLDER).iterdir()] == ["0002.jsonl"]


def test_while_the_training_goes_on_it_is_refused(waiting, model, capfd):
    waiting(*values(1))
    program = """
import sys
from pathlib import Path
from accmt.checkpoint.lock import Lock
Lock(Path(sys.argv[1])).acquire()
print("ready", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", program, str(model)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        expected = (
            f"{model} is in use: the running training sends what waits itself; call this again after it has ended\n"
        )
        assert sync(model, capfd) == (1, "", expected)
        process.communicate()
    assert list(waiting_in(model).values()) == ["1 value (step 1)"]


def test_where_there_is_no_training(tmp_path, capfd):
    missing, empty = tmp_path / "missing", tmp_path / "empty"
    empty.mkdir()
    assert sync(missing, capfd) == (1, "", f"{missing}: there is no such folder\n")
    assert not missing.exists()
    expected = f"{empty} is not the folder of a training: it has neither history.jsonl nor outbox\n"
    assert sync(empty, capfd) == (1, "", expected)
    assert not list(empty.iterdir())
    file = empty / "history.jsonl"
    file.touch()
    assert sync(file, capfd) == (1, "", f"{file} is a file: give the model_path of a training, a folder\n")


@pytest.mark.parametrize("arguments", [[], ["--timeout", "0"], ["--timeout", "soon"], ["--timeout"], ["--time", "5"]])
def test_a_wrong_call(arguments, tmp_path):
    with pytest.raises(SystemExit) as caught:
        main(["sync", *([str(tmp_path)] if arguments else []), *arguments])
    assert caught.value.code == 2


def test_mlflow_needs_no_torch(waiting, model, store):
    waiting(*values(1), RunEnd("FINISHED", 2), experiment="light")
    code = (
        "import sys; from accmt.cli.main import main; status = main(['sync', sys.argv[1], '--to', sys.argv[2]]);"
        "print(status, [name for name in ('torch', 'accelerate') if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(model), str(store)], capture_output=True, text=True, check=False
    )
    assert ran.stdout == f"mlflow at {store}: sent 1 value (step 1), the status FINISHED\n0 []\n", ran.stderr
    assert ran.stderr == ""


def test_values_that_no_number_stands_for(waiting, runs, model, capfd):
    waiting(Logged({"nan": math.nan, "inf": math.inf}, 1, 1_001), RunEnd("FINISHED", 2), experiment="odd numbers")
    assert sync(model, capfd)[0] == 0
    client, [run] = runs("odd numbers")
    assert math.isnan(points(client, run, "nan")[0][1])
    assert points(client, run, "inf")[0][1] > 1e308


def test_a_folder_that_cannot_be_written(waiting, model, capfd, monkeypatch):
    waiting(*values(1))

    def cannot(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("accmt.checkpoint.lock.Lock.acquire", cannot)
    assert sync(model, capfd) == (1, "", f"{model} cannot be written: Permission denied\n")


def test_a_search_without_a_folder_keeps_what_waits(regression, data, capfd, server, monkeypatch, mlflow, tmp_path):
    """The folders of its trials are temporary, but for one from which something still has to be sent."""
    pytest.importorskip("optuna", reason="optuna is not installed")
    from accmt import HyperParameterSearch
    from accmt.tracking import background
    from accmt.tracking.sending import SendingLimits

    monkeypatch.setattr(background, "LIMITS", SendingLimits(interval=0.01, end=0.1, start=0.1))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tracking = {"log_with": "mlflow", "logging_dir": server.address}
    searching = HyperParameterSearch(regression, data(8), data(4), dataloader_num_workers=0, **tracking)
    searching.set_parameters(train_batch_size=4)
    server.freeze()
    try:
        searching.optimize(n_trials=1)
    finally:
        server.thaw()
    for thread in threading.enumerate():  # in the same process, the call that hung would begin the same run meanwhile
        if thread.name == "tracker mlflow":
            thread.join()
    [command] = re.findall("later: (accmt sync .*)", capfd.readouterr().out)
    assert main(command.split()[1:]) == 0
    assert capfd.readouterr().out == f"mlflow at {server.address}: sent 3 values (step 2), the status FINISHED\n"

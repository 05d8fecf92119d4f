"""The folder of a training that somebody else made: nothing is sent, written or read that only the folder asks for."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from waiting import waiting_in

from accmt.checkpoint import publish
from accmt.checkpoint.checkpoints import NoCheckpoint
from accmt.cli.main import main
from accmt.config.errors import ConfigError
from accmt.files.foreign import below, problem_of_content
from accmt.rules import RuleError
from accmt.rules.codec import to_plain
from accmt.tracking.accelerate_trackers import AccelerateTracker, TensorBoardTracker
from accmt.tracking.mlflow import MlflowTracker
from accmt.tracking.outbox import FOLDER, Outbox
from accmt.tracking.records import Artifact, Recipient, RunEnd, SentPosition
from accmt.tracking.tracker import Beginning, Logged, check_state
from accmt.tracking.trust import Allowed, destination_of

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def model(tmp_path):
    return tmp_path / "model"


@pytest.fixture
def logs(tmp_path):
    return tmp_path / "logs"


@pytest.fixture
def waiting(leave, logs):
    """Entries -> they wait, for TensorBoard in `logs` unless another recipient is given."""

    def fill(*entries, tracker="tensorboard", location=None, **given):
        logged = entries or (Logged({"loss": 1.0}, 1, 1_001),)
        facts = {"experiment": "mine", "parameters": {}, **given}
        leave(*logged, RunEnd("FINISHED", 2_000), tracker=tracker, location=location or logs, **facts)

    return fill


@pytest.fixture
def listening():
    """A server that counts what it is asked, and its address."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(500)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def sync(model, capfd, *arguments):
    capfd.readouterr()
    return main(["sync", str(model), *map(str, arguments)]), *capfd.readouterr()


def test_a_destination_that_nobody_names_is_not_asked(waiting, listening, model, capfd, monkeypatch):
    address, asked = listening
    waiting(tracker="mlflow", location=f"http://me:secret@{address}/?token=abc")
    before = [path.read_bytes() for path in (model / FOLDER).iterdir()]
    for arguments in ([], ["--to", "http://127.0.0.1:1"], ["--to", "mlflow"]):
        status, out, err = sync(model, capfd, *arguments)
        assert (status, out, asked) == (1, "", [])
        assert err == (
            f"mlflow at http://{address}/?token=***: still waiting: 1 value (step 1), the status FINISHED; "
            "it is not sent, as neither the command line nor MLFLOW_TRACKING_URI names this place: if it is yours, "
            f"add --to 'http://{address}/?token=***'\n"
        )
    assert [path.read_bytes() for path in (model / FOLDER).iterdir()] == before
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{address}/?token=xyz")
    sync(model, capfd, "--timeout", "10")  # in which mlflow is imported, too
    assert asked, "the environment names it"


def test_a_folder_that_nobody_names_is_not_written(waiting, logs, model, capfd, monkeypatch, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    waiting()
    status, out, err = sync(model, capfd)
    assert (status, out, logs.exists()) == (1, "", False)
    assert err.endswith(f", as the command line does not name this place: if it is yours, add --to {logs}\n")
    monkeypatch.chdir(tmp_path)
    status, out, err = sync(model, capfd, "--to", "logs")
    assert (status, err, [path.name for path in logs.iterdir()]) == (0, "", ["mine"])


@pytest.mark.parametrize(
    ("recorded", "named", "same"),
    [
        ("10.0.0.1:5000", "http://10.0.0.1:5000/", True),
        ("http://Host:5000", "http://host:5000", True),
        ("http://host:5000", "https://host:5000", False),
        ("http://host:5000", "http://host:5001", False),
        ("http://host:5000", "http://host:5000@evil", False),
        ("http://host/a", "http://host/b", False),
        ("/srv/logs", "/srv/x/../logs", True),
        ("/srv/logs", "sqlite:////srv/logs/mlflow.db", True),
        ("/srv/logs", "file:///srv/logs", True),
        ("/srv/logs", "/srv/log", False),
    ],
)
def test_how_a_destination_is_named(recorded, named, same):
    recipient = Recipient("mlflow", "1", recorded, "x", {}, {}, 0)
    assert (destination_of(recipient, Allowed((named,))) is not None) == same


def test_the_password_is_that_of_who_names_the_place():
    recipient = Recipient("mlflow", "1", "http://host:5000", "x", {}, {}, 0)
    assert destination_of(recipient, Allowed(("http://me:secret@host:5000",))) == "http://me:secret@host:5000"
    others = Recipient("wandb", "1", "/logs", "x", {}, {}, 0)
    assert [destination_of(others, Allowed(named)) for named in [("wandb",), ("/logs",), ("wandb", "/logs")]] == [
        *(None, None, "/logs")
    ]


def test_artifacts_from_elsewhere_wait_until_they_are_allowed(waiting, logs, model, tmp_path, capfd):
    """By an absolute name, by '..', by a link to a file or a folder, by a hard link; inside of a folder too."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("key")
    (model / "plots").mkdir(parents=True)
    (model / "plots" / "good").write_text("good")
    (model / "folder").mkdir()
    (model / "link").symlink_to(secret / "key")
    (model / "way").symlink_to(secret)
    os.link(secret / "key", model / "hard")
    (model / "folder" / "link").symlink_to(secret / "key")
    (model / "pipes").mkdir()
    os.mkfifo(model / "pipes" / "pipe")
    os.mkfifo(model / "pipe")
    names = ["link", "way/key", "hard", "pipe", "../secret/key", "plots/../../secret/key"]
    refused = [(secret / "key", False), *((model / name, False) for name in names)]
    refused += [(model / "folder", True), (model / "pipes", True), (secret, True), (model, True)]
    files = [Artifact(path, is_folder, 1_500 + n) for n, (path, is_folder) in enumerate(refused)]
    waiting(*files, Artifact(model / "plots" / "good", False, 1_600), Artifact(model / "plots", True, 1_601))
    for _ in range(2):
        status, _, err = sync(model, capfd, "--to", logs)
        assert status == 1
        assert err.count(": not sent: ") == len(refused)
        assert f"'{secret / 'key'}' is outside of {model}: to send it, add --artifacts-from {secret / 'key'}\n" in err
        assert f"'{model / 'hard'}' has other names (hard links)" in err
        assert f"'{model / 'folder'}' holds link, which is not a regular file" in err
        assert [path.name for path in (logs / "mine" / "artifacts").iterdir()] == ["good"]
    assert list(waiting_in(model).values()) == [f"{len(refused)} artifacts"]
    sync(model, capfd, "--to", logs, "--artifacts-from", secret)
    assert sorted(path.name for path in (logs / "mine" / "artifacts").iterdir()) == ["good"], "it has two names"
    (model / "hard").unlink()
    assert sync(model, capfd, "--to", logs, "--artifacts-from", secret)[0] == 1
    assert sorted(path.name for path in (logs / "mine" / "artifacts").iterdir()) == ["good", "key"]


@pytest.mark.parametrize("folder", ["../victim", "/victim", "a/../../victim", "link/x", "", ".", "a\0b", 5, None, "~"])
def test_the_folder_of_a_run_stays_in_its_place(waiting, logs, model, tmp_path, capfd, folder):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    (tmp_path / "victim").mkdir()
    logs.mkdir()
    (logs / "link").symlink_to(tmp_path / "victim")
    if folder == "/victim":
        folder = str(tmp_path / "victim")
    waiting(run={"folder": folder})
    status, _, err = sync(model, capfd, "--to", logs)
    assert not any((tmp_path / "victim").iterdir())
    assert (status, "still waiting" in err) == ((0, False) if folder == "~" else (1, True))
    assert not Path("~").exists()


@pytest.mark.parametrize("where", ["artifacts", "artifacts/deep", "artifacts/file", "."])
def test_links_where_a_run_is_kept(logs, tmp_path, where):
    """A folder that is a link is refused, a file that is one is replaced."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    victim, source = tmp_path / "victim", tmp_path / "source"
    victim.mkdir()
    (victim / "kept").write_text("kept")
    (source / "deep").mkdir(parents=True)
    (source / "file").write_text("mine")
    (source / "deep" / "file").write_text("mine")
    link = logs / "run" / where
    if where == ".":
        link = logs / "run"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(victim / "kept" if where.endswith("file") else victim)

    def log():
        tracker = TensorBoardTracker(Beginning(str(logs), "x", {}, {"tensorboard": {"folder": "run"}}, 1), {})
        try:
            tracker.log_artifact(source / "file")
            tracker.log_artifacts(source)
        finally:
            tracker.close("FINISHED")

    if where.endswith("file"):
        log()
        assert (logs / "run" / "artifacts" / "file").read_text() == "mine"
    else:
        with pytest.raises(ValueError, match="is a link"):
            log()
    assert {path.name: path.read_text() for path in victim.iterdir()} == {"kept": "kept"}


def test_other_tools_get_no_other_arguments():
    for run in ({"dir": "/etc"}, {"id": "1", "resume": "allow", "dir": "/etc"}, "text", {"id": {}, "resume": "allow"}):
        with pytest.raises(ValueError, match="a training does not write this"):
            AccelerateTracker("wandb", Beginning("logs", "x", {}, {"wandb": run}, 1), {})


def test_a_store_that_keeps_artifacts_elsewhere(tmp_path, mlflow):
    logs, victim, file = tmp_path / "logs", tmp_path / "victim", tmp_path / "file"
    file.write_text("mine")
    victim.mkdir()
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{_made(logs) / 'mlflow.db'}")
    client.create_experiment("elsewhere", victim.as_uri())
    (logs / "artifacts").symlink_to(victim)
    for experiment, why in (("elsewhere", "outside of"), ("own", "is a link")):
        tracker = MlflowTracker(str(logs), experiment, {})
        for send, path in ((tracker.log_artifact, file), (tracker.log_artifacts, victim)):
            with pytest.raises(ValueError, match=why):
                send(path)
    assert not any(victim.iterdir())
    assert MlflowTracker(str(logs), "own", {}, "../x").state() != {"mlflow": "../x"}


def _made(folder):
    folder.mkdir()
    return folder


def test_an_outbox_is_a_folder_of_its_own(waiting, model, tmp_path):
    """Nothing is read or written behind a link, and no file is written that has another name."""
    waiting()
    (model / FOLDER / "lock").unlink()
    (tmp_path / "victim").write_text("kept")
    os.link(tmp_path / "victim", model / FOLDER / "lock")
    assert Outbox(model).problems == [f"{model / FOLDER} cannot be used: its lock has other names (hard links)"]
    (model / FOLDER).rename(tmp_path / "away")
    (model / FOLDER).symlink_to(tmp_path / "away")
    before = {file: file.read_bytes() for file in (tmp_path / "away").iterdir()}
    outbox = Outbox(model)
    [problem] = outbox.problems
    assert "is a link, and must be a folder" in problem
    outbox.read_by(SentPosition(Recipient("x", "1", "y", "z", {}, {}, 0)))
    outbox.add(Logged({"loss": 1.0}, 1, 1))
    assert "is a link" in str(outbox.trouble)
    outbox.release()
    assert {file: file.read_bytes() for file in (tmp_path / "away").iterdir()} == before
    assert (tmp_path / "victim").read_text() == "kept"


@pytest.mark.parametrize(
    "change", ["location", "parameters", "arguments", "began", "experiment", "tracker", "run", "part"]
)
def test_a_recipient_of_other_kinds_is_damaged(waiting, model, change):
    """Also one that is not that of the file's name."""
    waiting()
    [path] = (model / FOLDER).glob("*.json")
    content = json.loads(path.read_text())
    if change in ("run", "part"):
        content[change] = [1]
    else:
        content["recipient"][change] = "wandb" if change == "tracker" else [1]
    path.write_text(json.dumps(content))
    outbox = Outbox(model)
    [problem] = outbox.problems
    why = "its recipient belongs into another file" if change == "tracker" else f"{change}"
    assert (outbox.stored(), f"{path} is damaged: " in problem, why in problem) == ([], True, True)
    outbox.release()
    assert len(list((model / FOLDER).iterdir())) == 3


def test_a_file_without_lines_is_not_read_to_its_end(waiting, model):
    waiting()
    os.truncate(model / FOLDER / "0001.jsonl", 2**40)
    begun = time.monotonic()
    [left] = waiting_in(model).values()
    assert left == "1 value (step 1), the status FINISHED"
    (model / FOLDER / "0001.jsonl").write_bytes(b"")
    os.truncate(model / FOLDER / "0001.jsonl", 2**40)
    [problem] = Outbox(model).problems
    assert "a line in it is longer than" in problem
    assert time.monotonic() - begun < 60


def test_an_error_with_a_password_is_shown_without(tmp_path, monkeypatch, mlflow):
    from accmt.tracking.start import start_trackers

    def fails(*_):
        raise ValueError("API request to http://me:secret@127.0.0.1:1/api failed")

    monkeypatch.setattr("accmt.tracking.mlflow.mlflow_tracker_for", fails)
    beginning = Beginning("me:secret@127.0.0.1:1", "x", {}, {}, None)
    with pytest.raises(ConfigError) as caught:
        start_trackers({"mlflow": {}}, beginning, tmp_path, print)
    assert "secret" not in "".join(traceback.format_exception(caught.value))
    assert "API request to http://127.0.0.1:1/api failed" in str(caught.value)


@pytest.mark.parametrize(
    "state", [{"x": 5}, {"x": {}}, {"x": {"training": 1, "until": 1, "run": None}}, {"x": {"a": 1}}]
)
def test_the_state_of_trackers_that_none_gave(state):
    with pytest.raises(ValueError, match="the state of the tracker 'x' is "):
        check_state(state)
    check_state({"x": {"training": "1", "until": 1, "run": {"folder": "x"}}})


def test_names_below_a_folder(tmp_path):
    (tmp_path / "link").symlink_to("/")
    assert below(tmp_path, "a/b") == tmp_path / "a" / "b"
    for name in ("", ".", "..", "/etc", "a/../b", "link/etc", "a\\b", "a\0b"):
        with pytest.raises(ValueError, match=r"is not a relative name|is a link"):
            below(tmp_path, name)
    assert problem_of_content(tmp_path, tmp_path) == f"is outside of {tmp_path}"


PROGRAM = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN) if sys.argv.pop() == "ignored" else None
import accmt.cli.sync
moment = sys.argv.pop()
def run(options):
    print("here", flush=True)
    if moment == "in a callback":
        class Late:
            def __del__(self):
                time.sleep(3600)
        Late()
    elif moment == "at the end":
        import atexit
        atexit.register(time.sleep, 3600)
        return 0
    time.sleep(3600)
    return 0
accmt.cli.sync.run = run
from accmt.cli.main import main
sys.exit(main())
"""


@pytest.mark.parametrize("moment", ["in the middle", "in a callback", "at the end"])
@pytest.mark.parametrize("interrupts", ["heard", "ignored"])
def test_an_interrupt_ends_the_command_by_the_signal(model, moment, interrupts):
    """Also where Python would lose it, and where the process was started with interrupts ignored, as shells do for what
    they run in the background."""
    command = [sys.executable, "-c", PROGRAM, "sync", str(model), moment, interrupts]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "here\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert (process.returncode, err) == (-signal.SIGINT, "")


@pytest.fixture
def finished(trainer, regression, data, logs):
    """A training whose TensorBoard run lies in `logs`; it can be continued with more epochs."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")

    def fit(epochs=1, **arguments):
        training = trainer(epochs=epochs, log_with="tensorboard", logging_dir=str(logs), quiet=True, **arguments)
        training.fit(regression(), data(8), data(4))
        return training

    return fit


def tampered(model, change):
    """Change what the checkpoint says, with a manifest that is right again."""
    [folder] = (model / "checkpoints").iterdir()
    trainer = json.loads((folder / "trainer.json").read_text())
    change(trainer)
    (folder / "trainer.json").write_text(json.dumps(trainer))
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    manifest["files"]["trainer.json"] = to_plain(publish.describe([folder / "trainer.json"])[folder / "trainer.json"])
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))


def test_a_training_that_is_continued_writes_nothing_elsewhere(finished, model, tmp_path, capfd):
    """Neither where its checkpoint says that the run is, nor what an outbox says that still has to be sent."""
    finished()
    (tmp_path / "victim").mkdir()
    (tmp_path / "secret").write_text("secret")
    tampered(model, lambda trainer: trainer["tracker"]["tensorboard"]["run"].update(folder="../victim/x\x1b[2J"))
    capfd.readouterr()
    longer = finished(2)
    out, err = capfd.readouterr()
    assert "warning: tensorboard cannot be used: ValueError: '../victim/x\\x1b[2J' is not a relative name" in out
    assert "\x1b" not in out + err
    assert longer.state.global_step == 4
    assert not any((tmp_path / "victim").iterdir())
    tampered(model, lambda trainer: trainer["tracker"].update(tensorboard={"training": 5}))
    with pytest.raises(NoCheckpoint, match="the state of the tracker 'tensorboard' is "):
        finished(3)


def test_an_outbox_makes_a_training_send_nothing_from_elsewhere(finished, model, logs, tmp_path, capfd):
    finished()
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (model / "mine").write_text("mine")
    [folder] = (model / "checkpoints").iterdir()
    state = json.loads((folder / "trainer.json").read_text())["tracker"]["tensorboard"]
    outbox = Outbox(model)
    outbox.read_by(SentPosition(Recipient("tensorboard", state["training"], str(logs), "model", {}, {}, 0)))
    outbox.add(Artifact(secret, False, 1))
    outbox.add(Artifact(model / "mine", False, 2))
    outbox.release()
    capfd.readouterr()
    finished(2)
    assert [path.name for path in (logs / "model" / "artifacts").iterdir()] == ["mine"]
    assert f"not sent, as it waits since an earlier process: '{secret}' is outside of {model}" in capfd.readouterr().out


@pytest.mark.parametrize(
    "name", ["checkpoints", "outbox", "best_valid_loss", "history.jsonl", "training.json", "run.json", "log.jsonl"]
)
def test_a_training_does_not_work_behind_a_link(finished, model, tmp_path, name):
    (tmp_path / "victim").mkdir()
    (tmp_path / "file").write_text("")
    model.mkdir()
    (model / name).symlink_to(tmp_path / ("file" if "." in name else "victim"))
    with pytest.raises(ConfigError, match=rf"its {name} is (a link|not a file)"):
        finished()
    assert not any((tmp_path / "victim").iterdir())


@pytest.mark.parametrize("place", ["checkpoints", "Outbox", "best_valid_loss", "earlier-1"])
def test_a_run_does_not_lie_in_what_is_the_trainings_own(trainer, regression, data, model, place):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    texts = f"a tracker would write to '{place}' in model_path|would save into '{place}', which a tracker of this train"
    for arguments in ({"logging_dir": str(model), "track_name": place}, {"logging_dir": str(model / place)}):
        with pytest.raises((ConfigError, RuleError), match=texts):
            trainer(log_with="tensorboard", quiet=True, **arguments).fit(regression(), data(8), data(4))
        assert not (model / place).exists()


def test_the_lock_is_not_written_under_another_name(waiting, model, tmp_path, capfd):
    waiting()
    (tmp_path / "victim").write_text("kept")
    os.link(tmp_path / "victim", model / ".lock")
    status, _, err = sync(model, capfd)
    assert (status, err) == (1, f"{model} cannot be written: its .lock has other names (hard links)\n")
    assert (tmp_path / "victim").read_text() == "kept"

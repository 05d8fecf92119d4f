"""Trackers that are down

A training logs to a real MLflow server. The server is killed and started again, or paused, or a proxy in front of it
hangs up, answers 500, is slow, or does what it was asked and withholds the answer; and the process of the training is
killed meanwhile. It has **survived** if nothing was raised, the history and the decisions of the training are those of
an undisturbed one, and afterwards, if needed with the help of `accmt sync`, every value is in the single run of the
server exactly once.
"""

import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import start
from waiting import count_in, waiting_in

from accmt.cli.main import main
from accmt.tracking import background
from accmt.tracking.outbox import FOLDER, Outbox
from accmt.tracking.records import Recipient, SentPosition
from accmt.tracking.sending import SendingLimits
from accmt.tracking.tracker import Logged

sys.path.insert(0, str(Path(__file__).parent.parent / "tracking"))

import tracked
from servers import Proxy, Server, syncing

pytestmark = [
    pytest.mark.faults,
    pytest.mark.xdist_group("mlflow server"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
_numbers = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def proxy(server):
    proxy = Proxy(server)
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def client(server):
    return mlflow.MlflowClient(tracking_uri=f"http://{server.address}")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Neither MLflow nor we try for long."""
    monkeypatch.setattr(background, "LIMITS", SendingLimits(interval=0.01, pause=0.05, start=60.0, end=300.0))
    for name, value in (("MAX_RETRIES", 1), ("BACKOFF_FACTOR", 0), ("BACKOFF_JITTER", 0)):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", str(value))


@pytest.fixture
def folder(tmp_path):
    """A new model_path, whose name no other training has."""
    return lambda: tmp_path / f"model-{next(_numbers)}-{tmp_path.parent.name}"


@pytest.fixture(scope="module")
def undisturbed(server, client, tmp_path_factory):
    """What the server has, and what the training decided, where nothing goes wrong."""
    path = tmp_path_factory.mktemp("undisturbed") / f"undisturbed-{next(_numbers)}"
    tracked.train(path, server.address, {})
    found = tracked.points(client, path.name)
    assert tracked.differences(found, found) == []
    assert not (path / FOLDER).exists()
    return found, tracked.course(path)


@pytest.fixture
def check(client, undisturbed):
    """A model_path -> an assertion that the server has all of it once, and that it was trained as ever."""

    def check(path):
        points, course = undisturbed
        assert tracked.differences(tracked.points(client, path.name), points) == []
        assert not (path / FOLDER).exists()
        assert tracked.course(path) == course

    return check


def status_of(client, path):
    [run] = client.search_runs([client.get_experiment_by_name(path.name).experiment_id])
    return run.info.status


def killed(folder, address, at, down):
    """Train in another process, end the server when it is about to take a step, and the process at a later one."""
    given = {"folder": str(folder), "address": address, "at": at, "down": down, "mark": f"{folder}.mark"}
    with start(Path(tracked.__file__), json.dumps(given), preload=("mlflow",)) as process:
        while not Path(given["mark"]).exists():
            assert process.is_running(), process.end()
            time.sleep(0.01)
        process.kill()
        ran = process.end()
    assert "Traceback" not in ran.stdout + ran.stderr


def test_a_server_that_is_killed_and_started_again(server, client, folder, check, capfd):
    """It is down when the training starts, comes, dies in the middle, comes again, and dies before the end."""
    server.kill()
    path = folder()
    actions = {2: server.start, 4: server.kill, 6: server.start, 8: server.kill}
    tracked.train(path, server.address, actions)
    out, err = capfd.readouterr()
    assert err == ""
    why = f"no connection to http://{server.address}"
    assert f"warning: mlflow does not answer, the training continues without it: {why}\n" in out
    assert f", the status FINISHED; {why}; later: accmt sync {path} --to {server.address}\n" in out
    server.start()
    assert main(syncing(path)) == 0
    out, err = capfd.readouterr()
    assert out.startswith(f"mlflow at {server.address}: sent ")
    assert err == ""
    check(path)
    assert status_of(client, path) == "FINISHED"
    assert main(syncing(path)) == 0
    assert capfd.readouterr().out == f"{path}: nothing is waiting to be sent\n"


@pytest.mark.parametrize("thaws", [6, tracked.STEPS + 1, None])
def test_a_server_that_is_paused(server, client, folder, check, monkeypatch, thaws):
    """It hangs for a while, until the last step, or for good."""
    path = folder()
    if thaws is None:
        monkeypatch.setattr(background, "LIMITS", SendingLimits(interval=0.01, pause=0.05, end=0.2))
    try:
        tracked.train(path, server.address, {3: server.freeze, thaws: server.thaw})
    finally:
        server.thaw()
    assert (path / FOLDER).exists() == (thaws is None)
    if thaws is None:
        assert main(syncing(path)) == 0
    check(path)
    assert status_of(client, path) == "FINISHED"


def test_a_training_that_is_killed_while_the_server_is_down(tally, server, proxy, client, folder, check):
    """From before its start, or since a step. Then it is continued, or what waits is sent first, or only that."""
    for attempt in tally("the training is killed while the server is down", small=3, full=30):
        with attempt:
            how = ("continued", "sent and continued", "sent")[attempt.number % 3]
            since = attempt.chance.choice([None, 1, 2, 3, 4]) if attempt.number else None
            at = attempt.chance.choice([5, 6, 7, 8])
            attempt.plan = f"down since {since or 'before its start'}, killed before step {at}, {how}"
            path, proxy.mode = folder(), "well" if since else "down"
            killed(path, proxy.address, at, since)
            [left] = waiting_in(path).values()
            assert count_in(left)[1] == at - 1
            proxy.mode = "well"
            if how != "continued":
                assert main(syncing(path)) == 0
                assert not (path / FOLDER).exists()
                assert status_of(client, path) == "KILLED"
                found = tracked.points(client, path.name)
                assert [step for step, _ in found["train_loss"]] == list(range(1, at))
                assert main(syncing(path)) == 0
            if how != "sent":
                tracked.train(path, proxy.address, {})
                check(path)
                assert status_of(client, path) == "FINISHED"


def test_a_server_that_does_wrong_for_a_while(tally, proxy, client, folder, check):
    """From one moment of the training to another, from before its start to after its end."""
    moments = tracked.STEPS + 2
    for attempt in tally("the server does wrong for a while", small=10, full=150):
        with attempt:
            mode = ("down", "500", "slow", "deaf")[attempt.number % 4]
            first = attempt.chance.randrange(-1, moments)
            last = attempt.chance.randrange(first + 1, moments + 1)
            attempt.plan = f"{mode} from moment {first} to moment {last}"
            path, proxy.mode = folder(), mode if first < 0 else "well"
            actions = {
                first: lambda mode=mode: setattr(proxy, "mode", mode),
                last: lambda: setattr(proxy, "mode", "well"),
            }
            tracked.train(path, proxy.address, actions)
            if proxy.mode == "well" or mode == "slow":
                assert not (path / FOLDER).exists(), "there was time enough to send all"
            proxy.mode = "well"
            assert main(syncing(path)) == 0
            check(path)
            assert status_of(client, path) == "FINISHED"


def test_a_server_that_was_never_there_in_a_training_has_one_run_of_it(proxy, client, folder, check, capfd):
    path, proxy.mode = folder(), "down"
    tracked.train(path, proxy.address, {}, run_name="first", additional_tracker_config={"note": "mine"})
    assert main(syncing(path)) == 1
    err = capfd.readouterr().err
    assert err == (
        f"mlflow at {proxy.address}: still waiting: 59 values (steps 0 to 8), the status FINISHED; "
        f"no connection to http://{proxy.address}\n"
    )
    proxy.mode = "well"
    for _ in range(2):
        assert main(syncing(path)) == 0
    check(path)
    tracked.train(path, proxy.address, {}, run_name="second")
    check(path)
    [run] = client.search_runs([client.get_experiment_by_name(path.name).experiment_id])
    assert (run.info.run_name, run.data.params["note"], run.info.status) == ("first", "mine", "FINISHED")


@pytest.mark.parametrize("mode", ["500", "deaf"])
def test_artifacts_wait_as_values_do(proxy, client, folder, check, monkeypatch, capfd, mode):
    monkeypatch.setattr(
        background, "LIMITS", SendingLimits(interval=0.01, pause=0.05, artifact=0.0, end_with_artifacts=2.0)
    )
    path = folder()
    notes, gone = Path(f"{path}.notes"), Path(f"{path}.gone")
    notes.write_text("hello")
    gone.write_text("hello")

    def log():
        proxy.mode = mode
        for file in (notes, gone):
            callback.trainer.log_artifact(file)

    callback = tracked.AtSteps({4: log})
    proxy.mode = "well"
    tracked.train(path, proxy.address, {}, callback=callback)
    gone.unlink()
    proxy.mode = "well"
    capfd.readouterr()
    status = main(syncing(path))
    err = capfd.readouterr().err
    if mode == "500":
        assert (status, f"'{gone}' no longer exists\n" in err) == (1, True)
    check(path)
    [run] = client.search_runs([client.get_experiment_by_name(path.name).experiment_id])
    assert notes.name in [file.path for file in client.list_artifacts(run.info.run_id)]


def test_a_sync_that_is_ended_in_the_middle(tally, proxy, client, folder):
    """By SIGKILL or Ctrl-C, at any moment: the rest waits on, and nothing is doubled."""
    steps = 6000
    for attempt in tally("accmt sync is ended in the middle", small=3, full=30, hits=0.5):
        with attempt:
            path, proxy.mode, proxy.pause = folder(), "slow", 0.1
            outbox = Outbox(path)
            recipient = Recipient("mlflow", path.name, proxy.address, path.name, {"lr": 1}, {}, 1_000)
            outbox.read_by(SentPosition(recipient))
            for step in range(steps):
                outbox.add(Logged({"loss": float(step)}, step, 1_000 + step))
            outbox.release()
            number = (signal.SIGKILL, signal.SIGINT)[attempt.number % 2]
            after = attempt.chance.randrange(3, 8)
            attempt.plan = f"{number.name} after {after} batches"
            begun = len(proxy.asked)
            process = subprocess.Popen(
                [sys.executable, "-m", "accmt.cli.main", *syncing(path)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            while sum("log-batch" in path for path in proxy.asked[begun:]) < after and process.poll() is None:
                time.sleep(0.001)
            was_over = process.poll() is not None
            process.send_signal(number)
            _, err = process.communicate()
            assert err == ""
            proxy.mode = "well"
            if not was_over:
                assert process.returncode in (130, -number)
                if 0 < count_in(waiting_in(path).get("mlflow", ""))[0] < steps:
                    attempt.hit()
                assert main(syncing(path)) == 0
            assert not (path / FOLDER).exists()
            found = tracked.points(client, path.name)
            assert found == {"loss": [(step, float(step)) for step in range(steps)]}
            assert status_of(client, path) == "KILLED"

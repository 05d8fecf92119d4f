"""Trackers are alike, and what is not used costs nothing."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from accmt.tracking.mlflow import MlflowTracker, is_address, metric_name
from accmt.tracking.tracker import NoTracker, Tracker

ROOT = Path(__file__).resolve().parents[2]
METHODS = [name for name in vars(Tracker) if not name.startswith("_")]


@pytest.mark.parametrize("kind", [NoTracker, MlflowTracker])
def test_every_tracker_has_the_same_methods(kind):
    for name in METHODS:
        assert inspect.signature(getattr(kind, name)) == inspect.signature(getattr(Tracker, name)), name


def test_no_tracker_takes_everything(tmp_path, capfd):
    tracker = NoTracker()
    tracker.log({"loss": float("nan")}, 3)
    tracker.log_artifact(tmp_path / "nothing")
    tracker.log_artifacts(tmp_path)
    tracker.close("FAILED")
    assert tracker.state() == {}
    assert capfd.readouterr() == ("", "")


def test_mlflow_is_imported_when_it_is_used():
    code = (
        "import sys, accmt.tracking.mlflow; print([n for n in sys.modules if n.startswith(('mlflow', 'sqlalchemy'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "location",
    [
        *("10.0.0.1", "10.0.0.1:5000", "127.0.0.1:5000/mlflow", "localhost", "localhost:5000", "localhost/mlflow"),
        *(
            "me:secret@10.0.0.1:5000",
            "server:5000",
            "mlflow.example.com:80",
            "my-server.local:5000/a/b",
            "[::1]",
            "[fe80::1]:5000",
        ),
        *("http://localhost:5000", "https://mlflow.example.com/path", "sqlite:///x.db", "databricks://profile"),
    ],
)
def test_addresses(location):
    assert is_address(location)


@pytest.mark.parametrize(
    "location",
    [
        *("logs", "./logs", "../logs", "/var/logs", "a/b:5000", "logs.v1", "runs.2024", "my.logs", "logs/10.0.0.1"),
        *("~/logs", "10", "10.0.0", "1.2.3.4.5", "logs:", "logs:new", "", ".", "local host", "localhosts"),
    ],
)
def test_folders(location):
    assert not is_address(location)


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("accuracy", "accuracy"),
        ("val_loss-2.0/x y", "val_loss-2.0/x y"),
        ("größe", "größe"),
        ("recall@10", "recall:4010"),
        ("a:b", "a:3Ab"),
        ("100%", "100:25"),
        ("f1(macro)", "f1:28macro:29"),
        ("a//b", "a:2F:2Fb"),
        ("/a", ":2Fa"),
        ("a/", "a:2F"),
        ("a/../b", "a:2F..:2Fb"),
        (".", ":2E"),
        ("..", ":2E."),
        ("./a", ":2E:2Fa"),
        ("", ":"),
        ("😀\n", ":F0:9F:98:80:0A"),
        ("\ud800", ":ED:A0:80"),
    ],
)
def test_names_are_rewritten(name, sent):
    assert metric_name(name) == sent


def test_long_names_are_cut_and_still_different():
    names = ["x" * 250, "x" * 251, "x" * 251 + "y", "@" * 100, "@" * 101]
    sent = [metric_name(name) for name in names]
    assert all(len(name) <= 250 for name in sent)
    assert len(set(sent)) == len(names)
    assert sent[0] == names[0]
    assert sent[1].startswith("x" * 216 + "::")

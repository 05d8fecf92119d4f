"""Of two real processes only the main one has a tracker, and both know when it refuses."""

import json
from pathlib import Path

import pytest
from launching import launch

SCRIPT = Path(__file__).parent.parent / "distributed" / "train.py"

pytestmark = [
    pytest.mark.xdist_group("processes"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def run(folder, **arguments):
    pairs = [f"{name}={json.dumps(value)}" for name, value in arguments.items()]
    return launch(SCRIPT, folder, *pairs, processes=2, folder=folder.parent)


def test_values_are_sent_once(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    ran = run(tmp_path / "model", log_with="tensorboard", logging_dir=str(tmp_path / "logs"), log_every=3)
    assert ran.returncode == 0, ran.stderr
    assert len(list((tmp_path / "logs" / "model").glob("events.out.tfevents.*"))) == 1
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["model"]
    shown = EventAccumulator(str(tmp_path / "logs" / "model")).Reload()
    assert [event.step for event in shown.Scalars("train_loss")] == [3, 6, 9, 12]


def test_a_refusal_ends_both(tmp_path, mlflow):
    ran = run(tmp_path / "model", log_with="mlflow", logging_dir="what?")
    assert ran.returncode != 0
    assert "log_with: mlflow cannot be used: ValueError: MLflow cannot keep its store in" in ran.stderr
    assert ran.stderr.count("1 mistake in fit(...):") == 1, "the other process has nothing to add"

"""`trainer.rehearse`: the cost of a training, and whether it resumes exactly, found out without changing anything."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from launching import launch, start
from safetensors.torch import save_file

from accmt import HyperParameterSearch
from accmt.loop.exclusive import Busy, exclusive
from accmt.rehearsal.comparison import compare_trainings
from accmt.rehearsal.findings import Rehearsal, times
from accmt.rehearsal.runs import VARIABLE, Role
from accmt.rules import CadenceRule, Length

TRAINING = Path(__file__).with_name("training.py")


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """A kind of training -> what its rehearsal ended with, and found. Made once for all tests."""
    known = {}

    def rehearse(what, **environment):
        if what not in known:
            folder = tmp_path_factory.mktemp("rehearsed")
            temporary = tmp_path_factory.mktemp("temporary")
            ran = launch(TRAINING, what, folder, environment={"TMPDIR": str(temporary), **environment})
            assert not list(temporary.glob("accmt-rehearsal-*"))
            assert not list(folder.glob("**/.tmp-*"))
            path = folder / "found.json"
            known[what] = ran, json.loads(path.read_text()) if path.exists() else None
        return known[what]

    return rehearse


MISTAKE = """
import os, sys
from torch import nn
from accmt import Trainer
training = Trainer({}, sys.argv[1])
training.register_model_saving("acuracy")
getattr(training, sys.argv[2])(nn.Linear(1, 1), [0])
"""


@pytest.mark.parametrize("method", ["fit", "rehearse"])
def test_a_mistake_shows_its_message_without_the_frames_of_accmt(tmp_path, method):
    program = tmp_path / "program.py"
    program.write_text(MISTAKE)
    command = [sys.executable, "-m", "accmt.cli.main", "rehearse"] if method == "fit" else [sys.executable]
    ran = subprocess.run(
        [*command, str(program), str(tmp_path / "model"), method], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    shown = ran.stderr + ran.stdout
    assert "ConfigError" in shown
    assert f"{Path('accmt', 'trainer.py')}" not in shown
    assert "getattr(training, sys.argv[2])" in shown
    assert "runs.py" not in shown


def found_of(rehearsed, what):
    ran, found = rehearsed(what)
    ran.check()
    return found


@pytest.mark.proves("Trainer.rehearse")
def test_a_training_that_resumes_exactly(rehearsed):
    found = found_of(rehearsed, "exact")
    assert found["differences"] == []
    assert found["text"].endswith("resume after SIGKILL: exact, bit by bit")


@pytest.mark.proves("Trainer.rehearse(module)", "Trainer.rehearse(train_dataset)", "Trainer.rehearse(val_dataset)")
def test_the_costs_of_the_whole_training(rehearsed):
    found = found_of(rehearsed, "exact")
    costs = {name: (size > 0, number) for name, (_, size, number) in found["costs"].items()}
    assert costs == {
        "step": (False, 60),
        "evaluation on valid": (False, 3),
        "save best_error": (True, 3),
        "save best_valid_loss": (True, 3),
        "checkpoint": (True, 3),
    }
    assert all(seconds > 0 for seconds, _, _ in found["costs"].values())
    assert found["seconds"] == pytest.approx(sum(seconds * number for seconds, _, number in found["costs"].values()))
    memory, disk = found["notes"]
    assert re.fullmatch(r"peak memory of a process: [\d.]+ MB", memory)
    assert re.fullmatch(r"disk: checkpoints and saved models need [\d.]+ kB, [\d.]+ [MGT]B are free", disk)


def test_nothing_is_changed(rehearsed, tmp_path):
    found = found_of(rehearsed, "exact")
    assert found["unchanged"]
    assert found["left"] == []
    launch(TRAINING.read_text().replace('if what == "fits"', "if True"), "exact", tmp_path).check()
    alone = max((tmp_path / "model" / "checkpoints").iterdir()) / "model.safetensors"
    from safetensors.torch import load_file

    weights = {name: value.flatten().tolist() for name, value in load_file(alone).items()}
    assert sorted(weights.values()) == sorted(found["trained"])


def test_what_differs_is_named(rehearsed):
    found = found_of(rehearsed, "drifts")
    first, *others = found["differences"]
    assert first.startswith("batches-0.json: step 7, batch 7 of its epoch.data is '")
    assert any(line.startswith("model.safetensors: 0.weight differs by at most ") for line in others)
    assert "resume after SIGKILL: NOT exact:\n  batches-0.json: step 7" in found["text"]


def test_an_error_of_the_user(rehearsed):
    ran, found = rehearsed("raises")
    assert (ran.returncode, found) == (1, None)
    text = "RehearsalFailed: a short training from scratch: the process ended with status 1. Its output:\n"
    assert text in ran.stderr
    assert "ValueError: the third batch is wrong" in ran.stderr
    assert "raised in Module.training_step, epoch 1, step 2" in ran.stderr


@pytest.mark.proves("Trainer.rehearse(**kwargs)")
def test_arguments_are_those_of_fit(rehearsed):
    ran, found = rehearsed("kwargs")
    assert (ran.returncode, found) == (1, None)
    assert "num_labels: unknown argument." in ran.stderr


@pytest.mark.proves("Trainer.rehearse(loss_fn)", "Trainer.rehearse(metrics)")
@pytest.mark.parametrize("what", ["few", "stream", "none", "two steps", "fit first", "async", "plain"])
def test_other_trainings_resume_exactly_too(rehearsed, what):
    found = found_of(rehearsed, what)
    assert found["differences"] == []
    assert found["unchanged"]


def test_no_model_is_restored(rehearsed):
    """The rule of `restore_best` saves nothing in so few steps, which says nothing about the whole training."""
    assert [note for note in found_of(rehearsed, "few")["notes"] if "restore_best" in note] == []


def test_a_stream_without_length(rehearsed):
    found = found_of(rehearsed, "stream")
    assert found["costs"]["evaluation on valid"][0] is None
    assert found["seconds"] is None
    assert "the whole training takes unknown" in found["text"]


def test_a_training_of_unknown_length(rehearsed):
    found = found_of(rehearsed, "endless")
    assert found["differences"] == []
    assert {number for _, _, number in found["costs"].values()} == {None}
    assert found["seconds"] is None
    warning = "warning: how many checkpoints will be kept is unknown: the disk space is for one of them"
    assert found["notes"][-1] == warning


def test_no_validation_data(rehearsed):
    found = found_of(rehearsed, "none")
    assert list(found["costs"]) == ["step", "save best_train_loss", "checkpoint"]


def test_without_saved_models(rehearsed):
    assert list(found_of(rehearsed, "no saving")["costs"]) == ["step", "evaluation on valid", "checkpoint"]


@pytest.mark.parametrize(
    ("what", "why"),
    [("no checkpoints", "the training makes no checkpoints"), ("one step", "the training has a single step")],
)
def test_a_resume_that_cannot_be_tried(rehearsed, what, why):
    found = found_of(rehearsed, what)
    assert (found["differences"], found["not_tried"]) == (None, why)
    assert found["text"].endswith(f"resume: not tried, because {why}")


def test_nothing_is_sent_to_trackers(rehearsed):
    found = found_of(rehearsed, "tracked")
    assert found["differences"] == []
    assert found["left"] == []


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_interrupt_deletes_everything(tmp_path, number):
    temporary, folder = tmp_path / "temporary", tmp_path / "folder"
    temporary.mkdir()
    folder.mkdir()
    with start(TRAINING, "exact", folder, environment={"TMPDIR": str(temporary)}) as running:
        running.wait_for(f"rehearsal {number}/3")
        os.kill(running._children[0].pid, signal.SIGINT)
        assert running.end().returncode == -signal.SIGINT
    assert list(temporary.glob("accmt-rehearsal-*")) == []
    assert list(folder.iterdir()) == []


def test_the_run_that_a_script_is_started_for(tmp_path):
    """`fit` makes it, and no line after it is run."""
    role = json.dumps({"run": "whole", "folder": str(tmp_path)})
    ran = launch(
        TRAINING.read_text().replace("raise SystemExit", "1 / 0"), "fits", tmp_path, environment={VARIABLE: role}
    )
    ran.check()
    assert Role("whole", str(tmp_path)).findings().costs["step"][2] == 60
    assert not (tmp_path / "model").exists()


class TestRefused:
    def test_several_processes(self, trainer, regression, data, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        text = "one of several processes cannot be forked for a rehearsal: call `accmt rehearse SCRIPT`, for the"
        with pytest.raises(RuntimeError, match=f"^{text} script$"):
            trainer().rehearse(regression(), data(8), data(4))

    def test_several_machines(self, tmp_path):
        role = json.dumps({"run": "whole", "folder": str(tmp_path)})
        variables = {VARIABLE: role, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
        ran = launch(TRAINING, "fits", tmp_path, environment=variables)
        assert ran.returncode == 1
        assert "RuntimeError: a training on several machines cannot be rehearsed: rehearse it on one" in ran.stderr

    def test_a_gpu(self, trainer, regression, data, monkeypatch):
        monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        with pytest.raises(RuntimeError, match=r"^a process that uses a GPU cannot be forked for a rehearsal: call"):
            trainer().rehearse(regression(), data(8), data(4))

    def test_during_a_training(self, trainer, regression, data):
        with exclusive("fit"), pytest.raises(Busy, match=r"^rehearse cannot start: a training is running"):
            trainer().rehearse(regression(), data(8), data(4))

    def test_a_search(self, regression, data, monkeypatch, tmp_path):
        monkeypatch.setenv(VARIABLE, json.dumps({"run": "whole", "folder": str(tmp_path)}))
        search = HyperParameterSearch(regression, data(8), data(4))
        with pytest.raises(RuntimeError, match=r"^a search cannot be rehearsed: rehearse one training, with fixed"):
            search.optimize(n_trials=1)


@pytest.mark.parametrize(
    ("cadence", "number"),
    [
        ("epoch", 10),
        ("30 steps", 34),
        ("25%", 4),
        ("2 minutes", 5),
        ("2 evaluations", 5),
        ("64 samples", 125),
        ("500 steps or 1 minute", 9),
        ("5000 steps", 1),
    ],
)
def test_how_often_a_cadence_comes_due(cadence, number):
    length = Length(total_steps=1000, steps_per_epoch=100, samples_per_step=8)
    assert times(CadenceRule.parse(cadence), length, 0.5, 10) == number
    assert times(CadenceRule.parse(cadence), replace(length, total_steps=None), 0.5, None) is None


def test_times_and_sizes_are_readable():
    costs = {"step": (0.25, 0, 100_000), "checkpoint": (2.0, 1_500_000, 10)}
    assert str(Rehearsal(costs, ["a note"], "", ["model.safetensors: weight differs"])).splitlines() == [
        "                  each       times          together        size",
        "step            0.25 s     100,000           6:56:40",
        "checkpoint         2 s          10              20 s      1.5 MB",
        "the whole training takes 6:57:00",
        "a note",
        "resume after SIGKILL: NOT exact:",
        "  model.safetensors: weight differs",
    ]


def test_differences_are_named_by_file_and_value(tmp_path):
    for name, shift in (("one", 0.0), ("other", 0.5)):
        folder = tmp_path / name / "checkpoints" / "checkpoint-0001-step-4"
        folder.mkdir(parents=True)
        weights = {"same": torch.ones(2), "weight": torch.ones(2) + shift, "count": torch.tensor([int(shift * 2)])}
        save_file(weights, folder / "model.safetensors")
        (folder / "trainer.json").write_text(json.dumps({"elapsed": shift, "parts": [{"rate": shift}, 1]}))
        (folder / "state.bin").write_bytes(name.encode())
        (folder.parent.parent / "history.jsonl").write_text(json.dumps({"values": {"loss": shift}}) + "\n")
    (folder / "process-1.json").write_text('{"a": 1}')
    assert compare_trainings(tmp_path / "one", tmp_path / "other", 4) == [
        "model.safetensors: count differs by at most 1",
        "model.safetensors: weight differs by at most 0.5",
        "process-1.json: a differs",
        "state.bin: content differs",
        "trainer.json: parts.0.rate is 0.5 instead of 0.0",
        "history.jsonl: 0.values.loss is 0.5 instead of 0.0",
    ]
    assert compare_trainings(tmp_path / "other", tmp_path / "other", 4) == []

"""`run.json`: what a training is, in words and numbers, and each of its starts."""

import json
import platform
import subprocess
import sys
from types import SimpleNamespace

import accelerate
import pytest
import torch
from launching import launch
from torch.utils.data import IterableDataset

import accmt
from accmt import ConfigError, HyperParameters, Trainer
from accmt.files.secret_values import without_secrets


def refuse(constant):
    raise AssertionError(f"{constant} is not strict JSON")


def read(training):
    return json.loads((training.model_path / "run.json").read_text(), parse_constant=refuse)


def test_a_training_is_written_down(trainer, regression, data, error_metric, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--rate", "0.05", "a b"])
    hps = {"scheduler": "StepLR", "scheduler_kwargs": {"step_size": 2}}
    training = trainer(metrics=error_metric(), patience=3, hps=hps, stop_when="valid_loss < 0", seed=7)
    training.register_model_saving("best_error", saving_below=float("inf"))
    training.fit(regression(), data(16), {"dev": data(4), "test": data(5)})
    run = read(training)
    assert run["arguments"]["evaluate_every"] is None, "as it was given"
    assert run["settings"]["evaluate_every"] == "epoch", "in force"
    assert (run["arguments"]["patience"], run["settings"]["stop_when"]) == (3, ["valid_loss < 0"])
    assert run["hyperparameters"]["optimizer"] == {"type": "SGD", "lr": 0.05}
    assert run["settings"]["optim_kwargs.momentum"] == 0
    assert run["rules"] == {
        "best_error": "saves when error is lower than at its last save, below inf; asks to stop after 3 evaluations "
        "without improvement"
    }
    assert (run["seed"], run["total_steps"]) == (7, 8)
    assert run["model"] == {"parameters": 49, "trainable": 49}
    assert (run["train_samples"], run["validation_samples"]) == (16, {"dev": 4, "test": 5})
    [start] = run["starts"]
    assert (start["checkpoint"], start["changes"]) == (None, [])
    assert start["command"] == "train.py --rate 0.05 'a b'"
    assert (start["host"], start["processes"]) == (platform.node(), 1)
    assert start["devices"] == [f"{platform.node()} {training_device()}"]
    versions = {"accmt": accmt.__version__, "torch": torch.__version__, "accelerate": accelerate.__version__}
    assert start["versions"].items() >= versions.items()
    assert start["versions"]["python"] == platform.python_version()
    assert start["time"].endswith("+00:00")


def training_device():
    return accelerate.PartialState().device


class Endless(IterableDataset):
    """A stream whose class has lengths, but this one has not."""

    def __len__(self):
        raise NotImplementedError

    def __iter__(self):
        return iter([(torch.ones(4), torch.ones(1))] * 8)


def test_a_size_that_is_not_known(trainer, regression, data):
    training = trainer(epochs=1)
    training.register_model_saving("best_valid_loss", name="loss_per_token")
    training.fit(regression(), data(8), {"a": Endless(), "b": data(5)})
    run = read(training)
    assert run["validation_samples"] == {"a": None, "b": 5}
    assert run["rules"] == {"loss_per_token": "saves when valid_loss is lower than at its last save"}


def test_only_trained_parameters_are_counted_as_such(trainer, regression, data):
    module = regression()
    module.model[0].requires_grad_(False)
    training = trainer(epochs=1)
    training.fit(module, data(8))
    assert read(training)["model"] == {"parameters": 49, "trainable": 9}


def test_each_resume_adds_a_start(trainer, regression, data, monkeypatch):
    trainer(epochs=1).fit(regression(), data(8), data(4))
    monkeypatch.setattr(sys, "argv", ["again.py"])
    trainer(epochs=2, lr=0.1).fit(regression(), data(8), data(4))
    training = trainer(epochs=3, lr=0.1, patience=5)
    training.fit(regression(), data(8), data(4))
    run = read(training)
    assert run["hyperparameters"]["epochs"] == 3, "the settings are those of the last start"
    first, second, third = run["starts"]
    assert (first["checkpoint"], first["changes"]) == (None, [])
    assert (second["checkpoint"], second["command"]) == ("checkpoint-0001-step-2", "again.py")
    assert second["changes"] == ["epochs was 1 and is 2", "lr was 0.05 and is 0.1"]
    assert third["checkpoint"] == "checkpoint-0002-step-4"
    assert third["changes"] == [
        "the patience of 'best_valid_loss' was none and is 5: the evaluations without improvement count",
        "epochs was 2 and is 3",
    ]


def test_from_scratch_moves_it_with_the_other_files(trainer, regression, data):
    trainer(epochs=1).fit(regression(), data(8))
    training = trainer(epochs=1, resume=False)
    training.fit(regression(), data(12))
    former = json.loads((training.model_path / "earlier-1" / "run.json").read_text())
    assert (former["train_samples"], read(training)["train_samples"]) == (8, 12)
    assert len(read(training)["starts"]) == 1


@pytest.mark.parametrize("content", ["{", '{"schema": 2, "starts": []}', '{"schema": 1, "starts": 3}', "[NaN]"])
def test_a_damaged_file_is_kept_aside(trainer, regression, data, capsys, content):
    training = trainer(epochs=1)
    training.fit(regression(), data(8))
    (training.model_path / "run.json").write_text(content)
    trainer(epochs=2).fit(regression(), data(8))
    place, aside = training.model_path / "run.json", training.model_path / "earlier-1"
    shown = capsys.readouterr().out.replace("\n", "")
    assert f"warning: earlier starts are not known: {place} cannot be read: " in shown
    assert f"it was moved to {aside}" in shown
    assert (aside / "run.json").read_text() == content
    assert [start["checkpoint"] for start in read(training)["starts"]] == ["checkpoint-0001-step-2"]


def test_a_file_of_somebody_else_is_not_overwritten(trainer, regression, data, capsys):
    training = trainer(epochs=1)
    training.model_path.mkdir()
    (training.model_path / "run.json").write_text("my notes")
    training.fit(regression(), data(8))
    assert (training.model_path / "earlier-1" / "run.json").read_text() == "my notes"
    assert "warning: earlier starts are not known: " in capsys.readouterr().out


def test_a_disk_that_refuses_it_is_a_warning(trainer, regression, data, capsys, monkeypatch):
    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("accmt.setup.run_file.replace_file", full)
    training = trainer(epochs=1)
    training.fit(regression(), data(8))
    assert "warning: run.json was not written: No space left on device" in capsys.readouterr().out
    assert training.state.global_step == 2
    assert not (training.model_path / "run.json").exists()


def git(folder, *arguments):
    own = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    ran = subprocess.run(["git", *own, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return ran.stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with one commit, which the running script seems to be in."""
    folder = tmp_path / "repository"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "train.py").write_text("1")
    git(folder, "init", "-q")
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__file__=str(folder / "inner" / "train.py")))
    return folder


def git_of(training):
    return read(training)["starts"][-1]["git"]


def test_the_commit_and_whether_files_were_changed_since(trainer, regression, data, repository):
    trainer("none", epochs=1).fit(regression(), data(8))
    assert git_of(trainer("none")) is None, "there is no commit"
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "first")
    commit = git(repository, "rev-parse", "HEAD")
    (repository / "results.txt").write_text("a file that is not tracked")
    training = trainer("clean", epochs=1)
    training.fit(regression(), data(8))
    assert git_of(training) == {"commit": commit, "dirty": False}
    (repository / "inner" / "train.py").write_text("2")
    training = trainer("clean", epochs=2)
    training.fit(regression(), data(8))
    assert git_of(training) == {"commit": commit, "dirty": True}


def test_no_git_and_a_git_that_hangs(trainer, regression, data, repository, monkeypatch, tmp_path):
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "first")
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    training = trainer("without", epochs=1)
    training.fit(regression(), data(8))
    assert git_of(training) is None
    (tools / "git").write_text("#!/bin/sh\nexec /bin/sleep 600\n")
    (tools / "git").chmod(0o755)
    monkeypatch.setattr("accmt.setup.run_file._GIT_SECONDS", 0.2)
    training = trainer("hanging", epochs=1)
    training.fit(regression(), data(8))
    assert git_of(training) is None


def test_secrets_are_masked(trainer, regression, data, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    command = "train.py --hf-token s3cret --api_key=s3cret DB_PASSWORD=s3cret http://me:s3cret@host:5000/?token=s3cret"
    more = [
        "me:s3cret@tracking.local:5000",
        "hf_abcdefgh",
        '{"token": "s3cret", "lr": 1}',
        "--use-auth-token",
        "--lr",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", [*command.split(), *more, "--max-tokens", "512", "tokenizer=bert", "--sort", "lr"])
    extra = {"wandb": {"api_key": "s3cret"}, "where": "https://me:s3cret@host/x", "note": "hf_abcdefgh"}
    training = trainer(epochs=1, additional_tracker_config=extra)
    training.fit(regression(), data(8))
    text = (training.model_path / "run.json").read_text()
    assert "s3cret" not in text
    assert "hf_abcdefgh" not in text
    command = read(training)["starts"][0]["command"]
    assert command.startswith(
        "train.py --hf-token '***' '--api_key=***' 'DB_PASSWORD=***' 'http://host:5000/?token=***'"
    )
    assert command.endswith("--use-auth-token --lr 1 --max-tokens 512 tokenizer=bert --sort lr")
    assert read(training)["arguments"]["additional_tracker_config"]["wandb"] == {"api_key": "***"}


@pytest.mark.parametrize(
    "plain", ["accuracy:max@dev", "best_a@dev", "--keyboard=us", "tokens=5", "s3://bucket/key", "/home/me/runs", "a=b"]
)
def test_what_is_no_secret_stays(plain, monkeypatch):
    monkeypatch.setenv("PWD", "/home/me/runs")
    assert without_secrets([plain, 1, None, True]) == [plain, 1, None, True]
    assert without_secrets({"nll_per_token": "min"}) == {"nll_per_token": "min"}


@pytest.mark.parametrize(
    "name", ["max_tokens", "tokenizer", "pad_token", "eos_token", "loss_per_token", "monkey", "keyboard", "MONKEY"]
)
def test_a_name_is_masked_by_its_words(name):
    assert without_secrets({name: "</mean>"}) == {name: "</mean>"}
    assert without_secrets(f"--{name}=mean") == f"--{name}=mean"


@pytest.mark.parametrize(
    "name",
    ["token", "key", "hf_token", "HF_TOKEN", "apiToken", "authtoken", "apikey", "accessKey", "x-api-key", "Token"],
)
def test_names_of_secrets(name):
    assert without_secrets({name: "s3cret"}) == {name: "***"}
    assert without_secrets(f"{name}=s3cret") == f"{name}=***"


def test_a_secret_that_begins_with_another_one_is_masked_whole(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "abcdefgh")
    monkeypatch.setenv("B_TOKEN", "abcdefgh-12345678")
    assert without_secrets("abcdefgh-12345678") == "***"


def test_tables_in_hyperparameters_and_numbers_of_tokens(tmp_path, regression, data, capsys):
    """Keys of a table may be numbers; a number of tokens is no secret, and a resume says that it has changed."""

    def make(parameters, lr, phases):
        return torch.optim.SGD(parameters, lr)

    for epochs, most in ((1, 8), (2, 16)):
        hps = HyperParameters(epochs, optimizer=make, optim_kwargs={"lr": 0.1, "phases": {0: "warm"}}, batch_size=4)
        training = Trainer(hps, tmp_path / "model", additional_tracker_config={"max_tokens": most})
        training.fit(regression(), data(8))
    run = read(training)
    assert run["hyperparameters"]["optimizer"]["phases"] == {"0": "warm"}
    assert run["arguments"]["additional_tracker_config"] == {"max_tokens": 16}
    assert "additional_tracker_config.max_tokens was 8 and is 16" in capsys.readouterr().out


PROGRAM = """
import sys
from torch import nn, ones, tensor
from torch.utils.data import TensorDataset
from accmt import AcceleratorModule, HyperParameters, Trainer

class Module(AcceleratorModule):
    def __init__(self):
        self.model = nn.Linear(2, 1)

    def training_step(self, batch):
        open(f"{sys.argv[1]}-{self.accelerator.process_index}.txt", "a").write(f"{batch[1].tolist()}\\n")
        return self.model(batch[0]).mean()

data = TensorDataset(ones(16, 2), tensor(range(16)))
Trainer(HyperParameters(int(sys.argv[2]), batch_size=4), sys.argv[1], seed=3).fit(Module(), data)
"""


@pytest.mark.xdist_group("processes")
def test_two_processes_write_one_file(tmp_path):
    for epochs in ("1", "2"):
        launch(PROGRAM, tmp_path / "model", epochs, processes=2).check()
    run = json.loads((tmp_path / "model" / "run.json").read_text())
    assert [start["processes"] for start in run["starts"]] == [2, 2]
    assert [len(start["devices"]) for start in run["starts"]] == [2, 2]
    assert [start["checkpoint"] for start in run["starts"]] == [None, "checkpoint-0001-step-2"]
    assert run["seed"] == 3


@pytest.mark.proves("Trainer(seed)")
@pytest.mark.xdist_group("processes")
def test_the_seed_determines_the_order_on_two_processes(tmp_path):
    for name in ("a", "b"):
        launch(PROGRAM, tmp_path / name, "2", processes=2).check()
    a, b = ([(tmp_path / f"{name}-{rank}.txt").read_text() for rank in (0, 1)] for name in ("a", "b"))
    assert a == b
    samples = sorted(sample for text in a for line in text.splitlines() for sample in json.loads(line))
    assert samples == sorted([*range(16), *range(16)]), "each process has its own half of each epoch"


class Draws:
    """What a training draws: the order of its data, and random numbers of each kind in its steps."""

    def __init__(self, regression):
        import random

        import numpy as np

        self.seen = seen = []

        class Drawing(regression):
            def training_step(self, batch):
                seen.append((batch[1][:, 0].tolist(), random.random(), float(np.random.rand()), float(torch.rand(()))))
                return super().training_step(batch)

        self.module = Drawing(dropout=0.5)


@pytest.mark.proves("Trainer(seed)")
def test_a_seed_is_a_set_seed_before_fit(trainer, regression, data):
    """What was seeded before has no effect; without `seed` it has."""

    def drawn(name, before, **arguments):
        draws = Draws(regression)
        accmt.set_seed(before)
        trainer(name, epochs=2, **arguments).fit(draws.module, data(16))
        return draws.seen

    by_hand = drawn("by hand", 5)
    assert drawn("given", 1, seed=5) == by_hand
    assert drawn("again", 2, seed=5) == by_hand
    assert drawn("other", 5, seed=6) != by_hand
    assert drawn("none", 1) != by_hand


@pytest.mark.proves("Trainer(seed)")
def test_a_resumed_training_keeps_its_random_states(trainer, regression, data, capsys):
    whole = Draws(regression)
    trainer("whole", epochs=2, seed=5).fit(whole.module, data(16))
    former, later = Draws(regression), Draws(regression)
    trainer("cut", epochs=1, seed=5).fit(former.module, data(16))
    assert "seed was" not in capsys.readouterr().out
    trainer("cut", epochs=2, seed=6).fit(later.module, data(16))
    assert former.seen + later.seen == whole.seen
    shown = capsys.readouterr().out
    assert "note: seed was 5 and is 6\n" in shown
    assert "note: the seed takes effect with resume=False: a resume keeps the random states and data order\n" in shown


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True, "1"])
def test_what_is_not_a_seed(tmp_path, seed):
    with pytest.raises(ConfigError) as caught:
        Trainer({"epochs": 1}, tmp_path, seed=seed)
    kind = type(seed).__name__
    text = f"seed: must be a whole number from 0 to 2**32 - 1, or None, not {seed!r} ({kind})"
    assert str(caught.value) == f"1 mistake in Trainer(...):\n  {text}"


def test_a_seed_that_had_no_effect_is_not_compared(trainer, regression, data, capsys):
    trainer(epochs=1, seed=7).fit(regression(), data(16))
    trainer(epochs=2, seed=8).fit(regression(), data(16))
    capsys.readouterr()
    trainer(epochs=3).fit(regression(), data(16))
    shown = capsys.readouterr().out
    assert "seed was" not in shown
    assert "the seed takes effect" not in shown
    trainer(epochs=4, seed=7).fit(regression(), data(16))
    assert "seed was" not in capsys.readouterr().out
    trainer(epochs=5, seed=8).fit(regression(), data(16))
    assert "note: seed was 7 and is 8\n" in capsys.readouterr().out


def test_quiet_is_not_compared_at_a_resume(trainer, regression, data, capsys):
    trainer(epochs=1, quiet=True).fit(regression(), data(16))
    trainer(epochs=2, quiet=False).fit(regression(), data(16))
    shown = capsys.readouterr().out
    assert "note: epochs was 1 and is 2\n" in shown
    assert "quiet was" not in shown

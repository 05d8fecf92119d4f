"""Held-out datasets: no rule and no evaluation of a training uses them; saved models are evaluated on them once."""

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from launching import launch
from torch import nn
from torch.utils.data import Dataset

from accmt import (
    AcceleratorModule,
    Callback,
    ConfigError,
    HyperParameterSearch,
    Trainer,
    TrainingHistory,
    load_saving,
    set_seed,
)
from accmt.checkpoint import held_out_values, publish
from accmt.rules import RuleError


class Normed(AcceleratorModule):
    """A module with running statistics, and a network beside its model; `Calls` counts its validation steps."""

    def __init__(self):
        self.model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        self.gate = nn.Linear(1, 1)

    def get_optimizer(self):
        return torch.optim.SGD([*self.model.parameters(), *self.gate.parameters()], lr=0.05)

    def output(self, inputs):
        return self.gate(self.model(inputs))

    def training_step(self, batch):
        return nn.functional.mse_loss(self.output(batch[0]), batch[1])

    def validation_step(self, key, batch):
        Calls.steps[key] += 1
        outputs = self.output(batch[0])
        return {"loss": nn.functional.mse_loss(outputs, batch[1]), "error": (outputs, batch[1])}


class Calls:
    """Counts validation steps by dataset; not in the module, whose attributes the trial evaluation restores."""

    steps: ClassVar[Counter] = Counter()


@pytest.fixture(autouse=True)
def _nothing_counted():
    Calls.steps = Counter()


class Reads(Dataset):
    """Notes at which steps of a training its samples are read."""

    def __init__(self, data, at):
        self.data, self.at, self.steps = data, at, []

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        self.steps.append(self.at())
        return self.data[index]


class Weights(Callback):
    """Keeps all tensors as they are after each evaluation."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def on_evaluation_end(self):
        self.kept.append(tensors_of(self.module))


def tensors_of(module):
    states = module.model.state_dict() | module.gate.state_dict(prefix="gate.")
    return {name: value.clone() for name, value in states.items()}


def are_equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def saving(folder):
    return json.loads((folder / "saving.json").read_text())


@pytest.fixture
def fitted(trainer, data, error_metric):
    """Keyword arguments -> a trainer that has trained on `dev` and held out `test`."""

    def make(*rules, datasets=None, **arguments):
        training = trainer(**{"metrics": error_metric(), "held_out": "test", **arguments})
        for rule in rules:
            training.register_model_saving(rule)
        set_seed(3)
        training.module = Normed()
        training.fit(training.module, data(16), datasets or {"dev": data(8, 1), "test": data(8, 2)})
        return training

    return make


@pytest.mark.proves("Trainer(held_out)")
def test_each_saved_model_is_evaluated_once_and_nothing_else_changes(fitted, data, capsys):
    kept = Weights()
    training = fitted("best_error keep 2", "best_valid_loss", epochs=4, callback=kept)
    module, folder = training.module, training.model_path
    assert are_equal(tensors_of(module), kept.kept[-1])
    entries = json.loads((folder / "best_error" / "index.json").read_text())["best_first"]
    assert len(entries) == 2
    for place in (*(folder / "best_error" / name for name in entries), folder / "best_valid_loss"):
        other = Normed()
        load_saving(place, other)
        [(key, values)] = saving(place)["held_out"].items()
        assert (key, values) == ("test", training.evaluate(other, {"test": data(8, 2)})["test"])
        assert publish.folder_problem(place) is None
    best = training.best("best_valid_loss")
    assert best.held_out == {"test": saving(folder / "best_valid_loss")["held_out"]["test"]}
    assert all(set(one.values) == {"dev"} for one in history_of(training))
    printed = capsys.readouterr().out
    assert "held out: test (each saved model is evaluated once, after the training)" in printed
    [line] = [line for line in printed.splitlines() if line.startswith("best_valid_loss  ")]
    assert f"held out: valid_loss@test {best.held_out['test']['valid_loss']:.6g}, error@test" in line


def history_of(training):
    return TrainingHistory.load(training.model_path).observations


def test_a_model_that_two_rules_chose_is_evaluated_once(fitted):
    training = fitted("best_error", "best_valid_loss", epochs=1)
    assert Calls.steps == {"dev": 1 + 2, "test": 1 + 2}  # one batch is tried before the first step
    assert training.best("best_error").held_out == training.best("best_valid_loss").held_out != {}


def test_they_are_not_read_before_the_end(fitted, data):
    steps = [0]

    class Now(Callback):
        def on_after_training_step(self):
            steps.append(self.state.global_step)

    test = Reads(data(8, 2), lambda: len(steps))
    arguments = {"epochs": 3, "callback": Now(), "eval_when_start": True, "sanity_check": False}
    fitted(datasets={"dev": data(8, 1), "test": test}, **arguments)
    assert set(test.steps) == {len(steps)}


def test_the_training_is_that_without_them(fitted, data):
    with_them = fitted(epochs=2)
    without = fitted(epochs=2, path="without", held_out=None, datasets={"dev": data(8, 1)})
    assert are_equal(tensors_of(with_them.module), tensors_of(without.module))
    values = [[one.values for one in history_of(each)] for each in (with_them, without)]
    assert values[0] == values[1]


def test_rules_may_not_name_them(fitted):
    with pytest.raises(RuleError) as error:
        fitted("best_error@dev/error@test", stop_when="valid_loss@test < 0.1", patience={"error@test": 1})
    assert str(error.value).splitlines()[:3] == [
        "the dataset 'test' is held out",
        "    error@test",
        "          ^^^^",
    ]
    with pytest.raises(RuleError) as error:
        fitted("best_error@dev/error@test", stop_when="valid_loss@test < 0.1")
    allowed = "  nothing may be chosen or stopped by a held-out dataset: it is evaluated once, after the training"
    assert str(error.value).split("\n") == [
        "the dataset 'test' is held out",
        "    best_error@dev/error@test",
        "                         ^^^^",
        f"{allowed}; the other datasets are: dev",
        "",
        "the dataset 'test' is held out",
        "    valid_loss@test < 0.1",
        "               ^^^^",
        f"{allowed}; the other datasets are: dev",
    ]
    hps = {"scheduler": "ReduceLROnPlateau"}
    with pytest.raises(RuleError, match="the dataset 'test' is held out"):
        fitted(hps=hps, scheduler_metric="error@test")


@pytest.mark.parametrize(
    ("given", "single", "text"),
    [
        ("tset", False, "'tset' is not a dataset, did you mean 'test'? The datasets are: dev, test"),
        (["dev", "test"], False, "holds out all datasets: the training needs one that is not, to evaluate on"),
        (
            "test",
            True,
            "names a dataset, and val_dataset is a single one: give a dictionary, such as {'dev': ..., 'test': ...}",
        ),
    ],
)
def test_datasets_that_cannot_be_held_out(trainer, data, given, single, text):
    datasets = data(8) if single else {"dev": data(8), "test": data(8)}
    with pytest.raises(ConfigError) as error:
        trainer(held_out=given).fit(Normed(), data(8), datasets)
    assert str(error.value) == f"1 mistake in fit(...):\n  held_out: {text}"


def test_keys_that_are_none(trainer):
    with pytest.raises(ConfigError) as error:
        trainer(held_out=[True])
    text = "held_out: must be the key of a dataset, or a list of keys, or None, not [True] (list)"
    assert str(error.value) == f"1 mistake in Trainer(...):\n  {text}"


@pytest.mark.parametrize("held_out", [1, ["1"]])
def test_keys_of_a_list(fitted, data, held_out):
    training = fitted("best_error", held_out=held_out, datasets=[data(8, 1), data(8, 2)], epochs=1)
    assert set(training.best().held_out) == {"1"}


def test_a_section_of_the_configuration(tmp_path, data):
    file = tmp_path / "hps.yaml"
    file.write_text("hps: {epochs: 1, batch_size: 4, optimizer: SGD}\nrules: {held_out: test}\n")
    training = Trainer(str(file), tmp_path / "model", dataloader_num_workers=0)
    training.fit(Normed(), data(8), {"dev": data(4), "test": data(4)})
    assert set(training.best().held_out) == {"test"}


def test_more_are_evaluated_later_and_nothing_twice(fitted, data):
    sets = {"dev": data(8, 1), "ood": data(8, 2), "test": data(8, 3)}
    fitted("best_error@dev", datasets=sets, held_out="test", epochs=1)
    before = Calls.steps.copy()
    fitted("best_error@dev", datasets=sets, held_out="test", epochs=1)
    assert Calls.steps == before
    again = fitted("best_error@dev", datasets=sets, held_out=["test", "ood"], epochs=1)
    assert Calls.steps - before == {"ood": 2}
    assert set(again.best().held_out) == {"test", "ood"}


def test_a_stopped_training_evaluates_them(fitted):
    training = fitted("best_error", stop_when="step >= 2", evaluate_every="1 step", epochs=9)
    assert training.state.global_step == 2
    assert set(training.best().held_out) == {"test"}


def test_an_interrupted_one_does_so_when_it_is_complete(fitted, capsys):
    class Interrupts(Callback):
        def on_epoch_end(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted("best_error", callback=Interrupts(), checkpoint_every="1 step")
    assert "interrupted, before the held-out datasets were evaluated, at step 4; run again" in capsys.readouterr().out
    assert Calls.steps["test"] == 1
    assert set(fitted("best_error").best().held_out) == {"test"}


def test_what_was_cut_short_is_completed(fitted, monkeypatch, capsys):
    """The second of two models is evaluated by the next run, and the first one is not evaluated again."""
    real, done = held_out_values.add_held_out, []

    def add(folder, values):
        done.append(folder)
        if len(done) == 2:
            raise KeyboardInterrupt
        real(folder, values)

    monkeypatch.setattr("accmt.loop.held_out.add_held_out", add)
    rules = "best_error keep 2"
    with pytest.raises(KeyboardInterrupt):
        fitted(rules, epochs=3)
    before = Calls.steps["test"]
    training = fitted(rules, epochs=3)
    assert Calls.steps["test"] == before + 2
    folders = [path.parent for path in (training.model_path / "best_error").glob("*/saving.json")]
    assert [set(saving(folder)["held_out"]) for folder in folders] == [{"test"}, {"test"}]
    assert not list((training.model_path / "best_error").glob(".tmp-*"))


def test_a_signal_between_two_models(fitted, monkeypatch, capsys):
    real = held_out_values.add_held_out

    def add(folder, values):
        real(folder, values)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("accmt.loop.held_out.add_held_out", add)
    monkeypatch.setattr("accmt.trainer.end_by_signal", lambda error: None)
    former = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        fitted("best_error keep 2", epochs=3)
    finally:
        signal.signal(signal.SIGTERM, former)
    text = "SIGTERM: not all saved models were evaluated on the held-out datasets; run again to evaluate the rest"
    assert text in capsys.readouterr().out


def test_a_model_that_cannot_be_written_is_a_warning(fitted, monkeypatch, capsys):
    def full(folder, values):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("accmt.loop.held_out.add_held_out", full)
    training = fitted("best_error", epochs=1)
    text = "OSError: [Errno 28] No space left on device; run again to evaluate it"
    assert (
        f"warning: best_error of step 4 was not evaluated on the held-out datasets: {text}" in capsys.readouterr().out
    )
    assert training.best().held_out == {}


def test_a_folder_is_complete_whatever_fails(fitted, monkeypatch):
    training = fitted("best_error", held_out=None, datasets=None, epochs=1)
    folder = training.best().folder
    monkeypatch.setattr(publish, "_put", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match="no"):
        held_out_values.add_held_out(folder, {"test": {"error": 1.0}})
    assert publish.folder_problem(folder) is None
    assert list(folder.parent.glob(".tmp-*")) == []
    monkeypatch.undo()
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("links are not possible")))
    held_out_values.add_held_out(folder, {"test": {"error": float("nan")}})
    assert saving(folder)["held_out"] == {"test": {"error": "nan"}}
    assert publish.folder_problem(folder) is None


def test_without_saved_models_there_is_nothing_to_evaluate(fitted, capsys):
    fitted("best_error", disable_model_saving=True, epochs=1)
    assert "held out: test (no model is saved that could be evaluated)" in capsys.readouterr().out
    assert Calls.steps["test"] == 1


def test_mistakes_are_found_before_the_first_step(trainer, data):
    class Wrong(Normed):
        def validation_step(self, key, batch):
            return {"error": batch} if key == "test" else super().validation_step(key, batch)

    with pytest.raises(KeyError, match="validation_step for 'test' returned no 'loss'"):
        trainer(held_out="test").fit(Wrong(), data(8), {"dev": data(8), "test": data(8)})


def test_a_change_is_said_at_a_resume(fitted, data, capsys):
    sets = {"dev": data(8, 1), "test": data(8, 2)}
    fitted("best_error@dev", datasets=sets, held_out=None, epochs=1)
    capsys.readouterr()
    fitted("best_error@dev", datasets=sets, held_out="test", epochs=2)
    printed = capsys.readouterr().out
    assert "note: the dataset 'test' is gone: its values are dropped" in printed
    assert "note: held_out was [] and is ['test']" in printed


def test_a_search_leaves_them_out(tmp_path, data):
    search = HyperParameterSearch(Normed, data(8), {"dev": data(4), "test": data(4)}, held_out="test")
    search.set_parameters(train_batch_size=4)
    with pytest.raises(RuleError, match="the dataset 'test' is held out"):
        search.optimize(objective="best_valid_loss@test", n_trials=1)
    search.optimize(objective="best_valid_loss@dev", n_trials=1)
    assert Calls.steps["test"] == 1


PROGRAM = """
import json, os, sys
import torch
from torch import nn
from torch.utils.data import TensorDataset
from accmt import AcceleratorModule, Callback, FunctionMetric, Trainer, set_seed

class Module(AcceleratorModule):
    def __init__(self):
        self.model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    def training_step(self, batch):
        return nn.functional.mse_loss(self.model(batch[0]), batch[1])
    def validation_step(self, key, batch):
        outputs = self.model(batch[0])
        return {"loss": nn.functional.mse_loss(outputs, batch[1]), "error": (outputs, batch[1])}

class Last(Callback):
    def on_epoch_end(self):
        self.weights = [value.clone() for value in self.module.model.state_dict().values()]

def data(seed, count):
    inputs = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, inputs.sum(1, keepdim=True))

last = Last()
error = FunctionMetric("error", lambda p, t: (p - t).abs().mean(), greater_is_better=False)
trainer = Trainer({"epochs": 3, "batch_size": 4, "optimizer": "SGD"}, sys.argv[1] + "/model", metrics=error, seed=3,
                  held_out="test", callback=last, dataloader_num_workers=0, destroy_after_training=False)
trainer.register_model_saving("best_error keep 2")
module = Module()
trainer.fit(module, data(0, 24), {"dev": data(1, 7), "test": data(2, 7)})
same = all(torch.equal(a, b) for a, b in zip(last.weights, module.model.state_dict().values(), strict=True))
from accmt import load_best
load_best(sys.argv[1] + "/model", module)
values = trainer.evaluate(module, {"test": data(2, 7)})["test"]
own = {"same": same, "held_out": trainer.best().held_out["test"], "values": values}
open(f"{sys.argv[1]}/{os.environ['RANK']}.json", "w").write(json.dumps(own))
"""


@pytest.mark.xdist_group("processes")
def test_two_processes_evaluate_together(tmp_path):
    launch(PROGRAM, tmp_path, processes=2).check()
    first, second = (json.loads(Path(tmp_path, f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["same"]
    assert second["same"]
    assert first["held_out"] == second["held_out"] == pytest.approx(first["values"])

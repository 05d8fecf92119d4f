"""Saved models are complete, exact, best first, and where they belong."""

import errno
import json
import math
import os
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from accmt.checkpoint import publish
from accmt.checkpoint.model_store import ModelStore
from accmt.checkpoint.saved_models import SavedModel, savings_in
from accmt.checkpoint.tensor_files import read_tensors
from accmt.checkpoint.weights import WeightsFormat
from accmt.files.json_io import DamagedFile
from accmt.rules import KeptModel, Outcome, SavingRule, Verdict


def verdict(rule, *kept):
    """What an engine says: (value, evaluation) of the models that are kept, best first."""
    entries = tuple(KeptModel((float(value),), number, number * 10) for value, number in kept)
    return Verdict(rule.name, entries[0].values, None, Outcome.SAVED, "saved", kept=entries)


def weights(value):
    return {"layer.weight": torch.full((2, 3), float(value)), "layer.bias": torch.arange(3, dtype=torch.bfloat16)}


def value_in(folder):
    return load_file(folder / "model.safetensors")["layer.weight"][0, 0].item()


def safe(folder, **arguments):
    return ModelStore(folder, WeightsFormat(safe=True), **arguments)


def test_one_model_is_replaced(tmp_path):
    savings, rule = safe(tmp_path), SavingRule.parse("best_accuracy@dev")
    assert savings.best(rule) is None
    for number, value in enumerate((0.5, 0.7), 1):
        savings.save(rule, verdict(rule, (value, number)), weights(value), epoch=number)
    publish.end_threads()
    assert [path.name for path in tmp_path.iterdir()] == ["best_accuracy@dev"]
    folder = tmp_path / "best_accuracy@dev"
    assert publish.folder_problem(folder) is None
    assert value_in(folder) == pytest.approx(0.7)
    assert savings.best(rule) == SavedModel("best_accuracy@dev", {"accuracy@dev": 0.7}, 20, 2, folder)
    assert SavedModel.read(folder) == savings.best(rule)
    assert json.loads((folder / "saving.json").read_text()) == {
        "schema": 1,
        "rule": "best_accuracy@dev",
        "text": "best_accuracy@dev",
        "values": {"accuracy@dev": 0.7},
        "step": 20,
        "epoch": 2,
        "evaluation": 2,
    }


def test_three_models_best_first_and_dropped_ones_gone(tmp_path):
    savings, rule = safe(tmp_path), SavingRule.parse("best_accuracy keep 3")
    folder = tmp_path / "best_accuracy"
    history = [(0.5, 1), (0.7, 2), (0.6, 3), (0.65, 4), (0.9, 5)]
    for count in range(1, 6):
        kept = sorted(history[:count], reverse=True)[:3]
        savings.save(rule, verdict(rule, *kept), weights(history[count - 1][0]), epoch=0)
        publish.end_threads()
        index = json.loads((folder / "index.json").read_text())["best_first"]
        assert index == [f"evaluation-{number:04d}-step-{number * 10}" for _, number in kept]
        assert sorted(path.name for path in folder.iterdir()) == sorted([*index, "index.json"])
        for (value, _), name in zip(kept, index, strict=True):
            assert publish.folder_problem(folder / name) is None
            assert value_in(folder / name) == pytest.approx(value)
    assert savings.best(rule).values == {"accuracy": 0.9}
    assert savings.best(rule).folder == folder / "evaluation-0005-step-50"


def test_models_of_several_rules_are_saved_at_once_and_one_may_fail(tmp_path, monkeypatch):
    """Each is flushed only when all are written, and the one that fails leaves the others and its former model."""
    rules = [SavingRule.parse(f"best_accuracy@{name}") for name in ("dev", "test", "far")]
    together, savings, flush = threading.Barrier(3), safe(tmp_path), publish.flush_file
    assert savings.save_all([(rule, verdict(rule, (0.5, 1))) for rule in rules], weights(0.5), 1, {}) == {}

    def flushed(path):
        if path.name == "model.safetensors":
            together.wait(60)
            if "test" in str(path.relative_to(tmp_path)):
                raise OSError(errno.EIO, "Input/output error")
        flush(path)

    monkeypatch.setattr(publish, "flush_file", flushed)
    failed = savings.save_all([(rule, verdict(rule, (0.7, 2))) for rule in rules], weights(0.7), 2, {})
    publish.end_threads()
    assert {name: str(error) for name, error in failed.items()} == {
        "best_accuracy@test": "[Errno 5] Input/output error"
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(rule.folder for rule in rules)
    for rule, value in zip(rules, (0.7, 0.5, 0.7), strict=True):
        assert publish.folder_problem(tmp_path / rule.folder) is None
        assert value_in(tmp_path / rule.folder) == pytest.approx(value)


def test_only_what_was_saved_here_is_deleted(tmp_path):
    savings, rule = safe(tmp_path), SavingRule.parse("best_accuracy keep 2")
    folder = tmp_path / "best_accuracy"
    savings.save(rule, verdict(rule, (0.5, 1)), weights(1), 0)
    (folder / "my notes").mkdir()
    (folder / "evaluation-0001-step-10-copy").mkdir()
    savings.save(rule, verdict(rule, (0.7, 3), (0.6, 2)), weights(1), 0)
    publish.end_threads()
    assert sorted(path.name for path in folder.iterdir()) == [
        "evaluation-0001-step-10-copy",
        "evaluation-0003-step-30",
        "index.json",
        "my notes",
    ]


@pytest.mark.parametrize(("before", "after"), [("", " keep 2"), (" keep 2", "")])
def test_a_rule_that_keeps_more_or_fewer_than_an_earlier_one(tmp_path, before, after):
    savings, folder = safe(tmp_path), tmp_path / "best_accuracy"
    for text, value in ((before, 0.5), (after, 0.25)):
        rule = SavingRule.parse(f"best_accuracy{text}")
        savings.save(rule, verdict(rule, (value, 1)), weights(value), 0)
        assert value_in(savings.best(rule).folder) == value
    publish.end_threads()
    assert len(list(folder.rglob("model.safetensors"))) == 1
    assert publish.folder_problem(savings.best(rule).folder) is None


def test_values_that_json_has_no_number_for(tmp_path):
    savings, rule = safe(tmp_path), SavingRule.parse("best_accuracy")
    savings.save(rule, verdict(rule, (math.inf, 1)), weights(1), 0)
    assert savings.best(rule).values == {"accuracy": math.inf}
    assert "Infinity" not in (tmp_path / "best_accuracy" / "saving.json").read_text()


def test_nothing_to_read(tmp_path):
    with pytest.raises(FileNotFoundError):
        SavedModel.read(tmp_path)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 50)
        self.head = nn.Linear(50, 50, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("transposed", self.embedding.weight.detach().t())
        self.register_buffer("bits", self.embedding.weight.detach().view(torch.int32))
        self.register_buffer("part", torch.arange(100_000.0)[7:9])
        self.register_buffer("small", torch.tensor([1.5, math.nan], dtype=torch.float16))
        self.register_buffer("none", torch.empty(0))
        self.register_buffer("no integers", torch.empty(0, dtype=torch.int64))
        self.norm = nn.BatchNorm1d(3)


@pytest.mark.parametrize("is_safe", [True, False])
def test_weights_are_bit_equal_in_both_forms(tmp_path, is_safe):
    model, rule = Tied(), SavingRule.parse("best_accuracy")
    ModelStore(tmp_path, WeightsFormat(is_safe)).save(rule, verdict(rule, (1, 1)), model.state_dict(), 0)
    folder = tmp_path / "best_accuracy"
    if is_safe:
        path, back = folder / "model.safetensors", read_tensors(folder / "model.safetensors")
    else:
        path = folder / "pytorch_model.bin"
        back = torch.load(path, weights_only=True)
        assert back["head.weight"].data_ptr() == back["embedding.weight"].data_ptr()
    assert sorted(back) == sorted(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape), name
        assert back[name].contiguous().view(-1).view(torch.uint8).tolist() == (
            tensor.contiguous().view(-1).view(torch.uint8).tolist()
        ), name
    assert sorted(path.name for path in folder.iterdir()) == ["MANIFEST.json", path.name, "saving.json"]
    copies = 3  # the matrix, its transpose, and its bits
    assert path.stat().st_size < copies * 50 * 50 * 4 + 20_000, "tied weights, or all of a larger storage, were written"
    restored = Tied()
    restored.load_state_dict(back)
    assert torch.equal(restored.head.weight, model.head.weight)


def test_saving_does_not_change_the_model(tmp_path):
    model, rule = Tied(), SavingRule.parse("best_accuracy")
    before = {name: (id(t), t.data_ptr(), t._version) for name, t in model.state_dict(keep_vars=True).items()}
    for is_safe in (True, False):
        ModelStore(tmp_path, WeightsFormat(is_safe)).save(rule, verdict(rule, (1, 1)), model.state_dict(), 0)
    assert {name: (id(t), t.data_ptr(), t._version) for name, t in model.state_dict(keep_vars=True).items()} == before


def test_state_that_is_no_tensor_is_named(tmp_path):
    rule = SavingRule.parse("best_accuracy")
    with pytest.raises(TypeError) as caught:
        safe(tmp_path).save(rule, verdict(rule, (1, 1)), {"a._extra_state": {"n": 1}}, 0)
    assert str(caught.value) == "'a._extra_state' is a dict, which safetensors cannot hold"
    ModelStore(tmp_path, WeightsFormat()).save(rule, verdict(rule, (1, 1)), {"a._extra_state": {"n": 1}}, 0)
    assert torch.load(tmp_path / "best_accuracy" / "pytorch_model.bin", weights_only=True) == {
        "a._extra_state": {"n": 1}
    }


def test_extras_lie_beside_the_weights(tmp_path):
    savings = safe(tmp_path, extras=lambda folder: (folder / "config.json").write_text("{}"))
    rule = SavingRule.parse("best_accuracy")
    savings.save(rule, verdict(rule, (1, 1)), weights(1), 0)
    assert publish.folder_problem(tmp_path / "best_accuracy") is None
    assert (tmp_path / "best_accuracy" / "config.json").is_file()


def test_a_failing_saving_leaves_the_former(tmp_path):
    rule = SavingRule.parse("best_accuracy")
    safe(tmp_path).save(rule, verdict(rule, (0.5, 1)), weights(0.5), 0)

    def fails(folder):
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        safe(tmp_path, extras=fails).save(rule, verdict(rule, (0.7, 2)), weights(0.7), 0)
    assert publish.folder_problem(tmp_path / "best_accuracy") is None
    assert value_in(tmp_path / "best_accuracy") == 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["best_accuracy"]


@pytest.mark.parametrize(
    "text",
    [
        "best_accuracy@..",
        "best_accuracy@'../../etc'",
        "best_'../x'",
        "best_'/etc/passwd'",
        "best_'a/../../b'",
        "best_accuracy@'\\'",
        "best_accuracy@'a\0b'",
        "best_accuracy@'ä ö'",
        "best_0.5 * accuracy@dev + 0.5 * f1@'..'",
    ],
)
def test_names_cannot_leave_the_folder(tmp_path, text):
    """Whatever the language lets through as a name, its folder is one below the model's path."""
    from accmt.rules import RuleError

    try:
        rule = SavingRule.parse(text)
    except RuleError:
        return
    inside = tmp_path / "models"
    safe(inside).save(rule, verdict(rule, (1, 1)), weights(1), 0)
    assert [path.name for path in tmp_path.iterdir()] == ["models"]
    assert [path.parent for path in inside.iterdir()] == [inside]
    assert len(Path(rule.folder).parts) == 1


def test_an_index_cannot_lead_out_of_the_folder(tmp_path):
    savings, rule = safe(tmp_path / "models"), SavingRule.parse("best_accuracy keep 2")
    savings.save(rule, verdict(rule, (1, 1)), weights(1), 0)
    other = safe(tmp_path)
    other.save(SavingRule.parse("best_f1"), verdict(SavingRule.parse("best_f1"), (3, 1)), weights(3), 0)
    index = tmp_path / "models" / "best_accuracy" / "index.json"
    index.write_text(json.dumps({"schema": 1, "best_first": ["../../best_f1"]}))
    assert savings.best(rule) is None


@pytest.mark.parametrize("what", ["a model", "its description", "the list", "a pipe", "the folder"])
def test_links_and_pipes_are_not_read(tmp_path, what):
    """A rule's model is in its folder itself, or it is not there: nothing is read behind a link, and nobody waits."""
    savings, rule = safe(tmp_path / "models"), SavingRule.parse("best_accuracy keep 2")
    savings.save(rule, verdict(rule, (1, 1)), weights(1), 0)
    folder = tmp_path / "models" / "best_accuracy"
    best = savings.best(rule)
    assert best is not None
    path = {
        "a model": best.folder,
        "its description": best.folder / "saving.json",
        "the list": folder / "index.json",
        "a pipe": best.folder / "saving.json",
        "the folder": folder,
    }[what]
    path.rename(tmp_path / "away")
    os.mkfifo(path) if what == "a pipe" else path.symlink_to(tmp_path / "away")
    if what == "the folder":
        assert savings_in(tmp_path / "models") == []
    else:
        assert savings.best(rule) is None
    if path.name == "saving.json":
        with pytest.raises(DamagedFile, match=r"it is (a link|not a regular file)"):
            SavedModel.read(best.folder)

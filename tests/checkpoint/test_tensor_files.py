"""Tensors are on the disk once, and back bit by bit under every name; JSON is strict."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from torch import nn

from accmt.checkpoint.tensor_files import read_tensors, write_tensors
from accmt.files.json_io import read_json, write_json


def through(tensors, folder):
    write_tensors(folder / "x.safetensors", tensors)
    return read_tensors(folder / "x.safetensors")


def stored_names(folder):
    with safe_open(folder / "x.safetensors", framework="pt") as file:
        return sorted(file.keys())


def test_tied_weights_are_written_once_and_read_under_both_names(tmp_path):
    embedding, head = nn.Embedding(100, 8), nn.Linear(8, 100, bias=False)
    head.weight = embedding.weight
    model = nn.ModuleDict({"embedding": embedding, "head": head})
    back = through(model.state_dict(), tmp_path)
    assert stored_names(tmp_path) == ["embedding.weight"]
    assert (tmp_path / "x.safetensors").stat().st_size < 100 * 8 * 4 + 500
    assert list(back) == ["embedding.weight", "head.weight"]
    assert torch.equal(back["head.weight"], head.weight)
    other = nn.ModuleDict({"embedding": nn.Embedding(100, 8), "head": nn.Linear(8, 100, bias=False)})
    other.load_state_dict(back)
    assert torch.equal(other["head"].weight, embedding.weight)


def test_overlapping_views_are_each_themselves(tmp_path):
    whole = torch.arange(12.0)
    square = whole[:9].view(3, 3)
    tensors = {
        "whole": whole,
        "middle": whole[3:7],
        "end": whole[6:],
        "even": whole[::2],
        "square": square,
        "transposed": square.t(),
        "same": whole.view(12),
        "bits": whole.view(torch.int32),
        "row": whole.view(1, 12),
    }
    back = through(tensors, tmp_path)
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype, name
        assert torch.equal(back[name], tensor), name
    assert "same" not in stored_names(tmp_path)


def test_layouts_in_memory(tmp_path):
    tensors = {
        "channels last": torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
        "expanded": torch.tensor([[1.0], [2.0]]).expand(2, 5),
        "permuted": torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1),
        "conjugated": torch.tensor([1 + 2j, 3 - 4j]).conj(),
        "negative": torch.tensor([1 + 2j, 3 - 4j]).conj().imag,
        "parameter": nn.Parameter(torch.ones(2)),
        "scalar": torch.tensor(3),
    }
    back = through(tensors, tmp_path)
    for name, tensor in tensors.items():
        assert torch.equal(back[name], tensor.detach()), name
        assert not back[name].requires_grad


def test_conjugate_is_not_taken_for_the_tensor_itself(tmp_path):
    tensor = torch.tensor([1 + 2j])
    back = through({"a": tensor, "b": tensor.conj()}, tmp_path)
    assert back["b"].item() == 1 - 2j


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.int8, torch.uint8, torch.float64])
def test_dtypes(tmp_path, dtype):
    tensor = torch.tensor([[0, 1, 2], [3, 4, 5]]).to(dtype)
    back = through({"a": tensor, "part": tensor[:, 1]}, tmp_path)
    assert back["a"].dtype == dtype
    assert torch.equal(back["a"], tensor)
    assert torch.equal(back["part"], tensor[:, 1])


def test_empty_tensors_are_not_taken_for_one(tmp_path):
    tensors = {"a": torch.empty(0), "b": torch.empty(0, 3), "c": torch.empty(0, dtype=torch.int64)}
    back = through(tensors, tmp_path)
    assert {name: (t.dtype, tuple(t.shape)) for name, t in back.items()} == {
        "a": (torch.float32, (0,)),
        "b": (torch.float32, (0, 3)),
        "c": (torch.int64, (0,)),
    }
    assert through({}, tmp_path) == {}


def test_special_values_keep_their_bits(tmp_path):
    tensor = torch.tensor([math.nan, math.inf, -0.0, 1e-45])
    assert torch.equal(through({"a": tensor}, tmp_path)["a"].view(torch.int32), tensor.view(torch.int32))


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (
            torch.ones(2, dtype=torch.complex128),
            "a tensor of complex128, which safetensors cannot hold. Use another dtype",
        ),
        (
            torch.ones(2).to_sparse(),
            "a sparse tensor, which safetensors cannot hold. Register it as its indices and values, or dense",
        ),
        ({"extra": 1}, "a dict, which safetensors cannot hold"),
    ],
)
def test_what_the_format_cannot_hold(tmp_path, value, kind):
    with pytest.raises(TypeError) as caught:
        write_tensors(tmp_path / "x.safetensors", {"layer.weight": value})
    assert str(caught.value) == f"'layer.weight' is {kind}"


@pytest.mark.parametrize("value", [math.nan, math.inf, [{"a": -math.inf}]])
def test_json_has_no_nan(tmp_path, value):
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        write_json(tmp_path / "x.json", value)
    (tmp_path / "x.json").write_text(json.dumps(value))
    with pytest.raises(ValueError, match=r"x\.json cannot be read: (NaN|-?Infinity) is not JSON$"):
        read_json(tmp_path / "x.json")


def test_json_comes_back(tmp_path):
    value = {"a": [1, 2.5, None, True, "ü\ud800"], "b": {}, "big": 2**70, "small": 5e-324}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value

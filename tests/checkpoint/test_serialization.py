"""State dictionaries go to the disk and back exactly, and nothing that is loaded can be more than data."""

import json
import math
import pickle
from collections import Counter, OrderedDict
from enum import StrEnum

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, AdamW, lr_scheduler

from accmt.checkpoint.serialization import pack, unpack
from accmt.checkpoint.tensor_files import read_tensors, write_tensors
from accmt.files.json_io import read_json, write_json


def through_files(value, folder):
    data, tensors = pack(value)
    write_json(folder / "data.json", data)
    write_tensors(folder / "data.safetensors", tensors)
    return unpack(read_json(folder / "data.json"), read_tensors(folder / "data.safetensors"))


def assert_same(mine, other, place="it"):
    """Equal in type and in every bit."""
    if isinstance(mine, torch.Tensor):
        assert isinstance(other, torch.Tensor), place
        assert (mine.dtype, mine.shape) == (other.dtype, other.shape), place
        assert bits(mine) == bits(other), place
    elif isinstance(mine, np.ndarray | np.generic):
        assert type(mine) is type(other), place
        assert mine.dtype == other.dtype, place
        assert mine.shape == other.shape, place
        assert mine.tobytes() == other.tobytes(), place
    elif isinstance(mine, dict):
        assert isinstance(other, dict), place
        assert [*map(repr, mine)] == [*map(repr, other)], place
        for (key, value), (_, theirs) in zip(mine.items(), other.items(), strict=True):
            assert_same(value, theirs, f"{place}[{key!r}]")
    elif isinstance(mine, list | tuple):
        assert type(mine) is type(other), place
        assert len(mine) == len(other), place
        for index, (value, theirs) in enumerate(zip(mine, other, strict=True)):
            assert_same(value, theirs, f"{place}[{index}]")
    elif isinstance(mine, float) and math.isnan(mine):
        assert math.isnan(other), place
    else:
        assert type(mine) is type(other), place
        assert repr(mine) == repr(other), place


def bits(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


VALUES = {
    "numbers": [0, -1, 2**80, 0.1, -0.0, 5e-324, 1.7e308, math.inf, -math.inf, math.nan, True, False, None, "", "ü\n"],
    "tuples": ((), (1,), (1, (2, [3, ()])), [(), []]),
    "keys": {0: "a", 1: "b", "0": "c", (1, "x"): 2, None: 3, 1.5: 4, math.inf: 5, True + 1: 6},
    "boolean keys": {True: 1, False: 0},
    "empty": {"d": {}, "l": [], "t": (), "s": ""},
    "nested tensors": {
        "state": {0: {"exp_avg": torch.arange(4.0), "step": torch.tensor(3.0)}},
        "list": [torch.ones(2)],
    },
    "one tensor": torch.arange(6).reshape(2, 3),
    "empty tensors": [torch.empty(0), torch.empty(0, 3, dtype=torch.int64), torch.empty(2, 0, dtype=torch.bool)],
    "special values": torch.tensor([math.nan, math.inf, -math.inf, -0.0, 5e-324], dtype=torch.float64),
    "tags as keys": [{"$tensor": "a"}, {"$dict": {}}, {"$float": "nan"}, {"$tuple": 1, "b": 2}, {"$number": None}],
    "tags in tags": {"$tensor": {"$tensor": torch.ones(1)}},
    "dotted": {"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}},
    "alike": {1: torch.zeros(1), "1": torch.ones(1), "": torch.full((1,), 2.0), "value": torch.full((1,), 3.0)},
    "numbered": {"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}, "a.b~2": torch.full((1,), 2.0)},
    "lists and dicts": {"a": [torch.zeros(1)], "a.0": torch.ones(1)},
    "dtypes": [torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn],
    "arrays": [np.arange(6).reshape(2, 3), np.array(3.5), np.zeros((0, 2), np.uint8), np.array([True, False])],
    "strided arrays": [np.arange(6).reshape(2, 3).T, np.arange(10)[::-2], np.broadcast_to(np.float32(1), (2, 2))],
    "array types": [np.ones(2, kind) for kind in ("i1", "i2", "i4", "u1", "u2", "u4", "u8", "f2", "f4", "f8")],
    "array scalars": [
        np.float32(0.1),
        np.float64(0.1),
        np.float16(0.1),
        np.int64(-3),
        np.uint64(2**64 - 1),
        np.bool_(True),
    ],
    "scalars that are special": [np.float32("nan"), np.float64("-inf"), np.float32(-0.0)],
}


@pytest.mark.parametrize("name", VALUES)
def test_round_trip_is_exact(tmp_path, name):
    assert_same(VALUES[name], through_files(VALUES[name], tmp_path))


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.bool),
        torch.complex64,
    ],
)
def test_every_dtype(tmp_path, dtype):
    tensor = torch.tensor([0, 1, 2, 3]).to(dtype)
    assert_same({"a": tensor, "b": tensor[0]}, through_files({"a": tensor, "b": tensor[0]}, tmp_path))


def test_big_endian_arrays_keep_their_values(tmp_path):
    back = through_files(np.array([1.5, -2.0], dtype=">f8"), tmp_path)
    assert back.tolist() == [1.5, -2.0]


def test_a_counter_is_still_one(tmp_path):
    """MultiStepLR asks its counter of milestones for `elements()`."""
    back = through_files({"milestones": Counter({30: 1, 80: 2})}, tmp_path)["milestones"]
    assert type(back) is Counter
    assert list(back.elements()) == [30, 80, 80]


def test_an_array_is_a_copy():
    array = np.zeros(3)
    _, tensors = pack(array)
    array[0] = 7
    assert tensors["value"].tolist() == [0, 0, 0]


def test_subclasses_become_what_they_are_made_of(tmp_path):
    class Colour(StrEnum):
        RED = "red"

    value = {"colour": Colour.RED, "size": torch.Size([2, 3]), "ordered": OrderedDict(a=1), "np": np.str_("x")}
    parameter = nn.Parameter(torch.ones(2))
    back = through_files({**value, "parameter": parameter}, tmp_path)
    assert_same(
        {"colour": "red", "size": (2, 3), "ordered": {"a": 1}, "np": "x", "parameter": parameter.detach()}, back
    )


class Strange:
    pass


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": [1, {"b": Strange()}]}, "cannot be written to a checkpoint: Strange at 'a.1.b'"),
        ({"a": {1, 2}}, "cannot be written to a checkpoint: set at 'a'"),
        ({"a": b"x"}, "cannot be written to a checkpoint: bytes at 'a'"),
        ({"a": lambda: 1}, "cannot be written to a checkpoint: function at 'a'"),
        ({"a": 1j}, "cannot be written to a checkpoint: complex at 'a'"),
        ({"a": np.longdouble(1)}, "cannot be written to a checkpoint: longdouble at 'a'"),
        ({"a": np.datetime64("2020-01-01")}, "cannot be written to a checkpoint: datetime64 at 'a'"),
        ({"a": np.array(["x"])}, "cannot be written to a checkpoint: an array of <U1 at 'a'"),
        ({"a": np.array([None])}, "cannot be written to a checkpoint: an array of object at 'a'"),
        ({"a": {Strange: 1}}, "cannot be written to a checkpoint: type at 'a'"),
        ({"a": {torch.ones(1): 1}}, "cannot be written to a checkpoint: a key that is a Tensor at 'a'"),
        ({"a": torch.ones(2).to_sparse()}, "cannot be written to a checkpoint: Tensor at 'a'"),
        ({"a": torch.ones(2, device="meta")}, "cannot be written to a checkpoint: Tensor at 'a'"),
    ],
)
def test_what_cannot_be_written_is_named_with_its_place(value, expected):
    with pytest.raises(TypeError) as caught:
        pack(value)
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"$tensor": "a"}, "the tensor 'a' is missing"),
        ({"$array": "a"}, "the tensor 'a' is missing"),
        ({"$tensor": []}, "not written by a checkpoint: {'$tensor': []}"),
        ({"$dtype": "load"}, "'load' is not a dtype"),
        ({"$dtype": "no_such"}, "not written by a checkpoint: {'$dtype': 'no_such'}"),
        ({"$dtype": 3}, "not written by a checkpoint: {'$dtype': 3}"),
        ({"$number": ["load", 1]}, "not written by a checkpoint: {'$number': ['load', 1]}"),
        ({"$number": ["int8", 300]}, "not written by a checkpoint: {'$number': ['int8', 300]}"),
        ({"$tuple": 3}, "not written by a checkpoint: {'$tuple': 3}"),
        ({"$dict": [[[], 1]]}, "not written by a checkpoint: {'$dict': [[[], 1]]}"),
        ({"$float": None}, "not written by a checkpoint: {'$float': None}"),
    ],
)
def test_what_pack_did_not_write_is_refused(data, expected):
    with pytest.raises(ValueError, match=r".") as caught:
        unpack(data, {})
    assert str(caught.value) == expected


TAGS = st.sampled_from(["$tensor", "$array", "$number", "$float", "$dtype", "$tuple", "$dict", "$counter"])

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
        | st.builds(lambda tag, content: {tag: content}, TAGS, inner)
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(json_values)
def test_any_json_gives_data_or_a_value_error(data):
    try:
        result = unpack(data, {})
    except ValueError:
        return
    check_is_data(result)


def check_is_data(value):
    if isinstance(value, dict):
        for key, item in value.items():
            check_is_data(key)
            check_is_data(item)
    elif isinstance(value, list | tuple):
        for item in value:
            check_is_data(item)
    else:
        assert value is None or isinstance(value, bool | int | float | str | np.generic | torch.dtype)


plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["$tensor", "$dict"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.integers() | TAGS, inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(plain_values)
def test_any_plain_data_comes_back(value):
    data, tensors = pack(value)
    assert not tensors
    assert_same(value, unpack(json.loads(json.dumps(data, allow_nan=False)), {}))


def test_loading_executes_nothing(tmp_path):
    """A pickle that is put in the place of either file is an error of the reader and is never run."""

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    for name in ("data.json", "data.safetensors"):
        through_files({"a": torch.ones(1)}, tmp_path)
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(Exception, match=r"codec can't decode|header"):
            read_json(tmp_path / name) if name.endswith("json") else read_tensors(tmp_path / name)
    pickle.loads(pickle.dumps(Bomb())).close()
    assert (tmp_path / "executed").exists()  # it would have shown


def trained(optimizer_of, steps, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    optimizer = optimizer_of(model)
    train(model, optimizer, steps)
    return model, optimizer


def train(model, optimizer, steps):
    for _ in range(steps):
        model(torch.randn(4, 3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


OPTIMIZERS = {
    "AdamW": lambda model: AdamW(model.parameters(), lr=0.1, amsgrad=True),
    "AdamW of two groups": lambda model: AdamW(
        [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[2].parameters(), "betas": (0.5, 0.6)}]
    ),
    "SGD": lambda model: SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True),
    "plain SGD": lambda model: SGD(model.parameters(), lr=0.1),
    "Adafactor": lambda model: torch.optim.Adafactor(model.parameters(), lr=0.1),
    "LBFGS": lambda model: torch.optim.LBFGS(model.parameters(), max_iter=2),
}


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "LBFGS"])
def test_optimizers_go_on_as_if_nothing_had_happened(tmp_path, name):
    model, optimizer = trained(OPTIMIZERS[name], 3)
    other, restored = trained(OPTIMIZERS[name], 1, seed=1)
    other.load_state_dict(model.state_dict())
    state = optimizer.state_dict()
    back = through_files(state, tmp_path)
    assert_same(state, back)
    restored.load_state_dict(back)
    for each in ((model, optimizer), (other, restored)):
        torch.manual_seed(2)
        train(*each, 3)
    assert_same(dict(model.state_dict()), dict(other.state_dict()))


def test_the_state_of_lbfgs_comes_back(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = OPTIMIZERS["LBFGS"](model)

    def loss():
        optimizer.zero_grad()
        value = model(torch.ones(2, 3)).square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    assert_same(optimizer.state_dict(), through_files(optimizer.state_dict(), tmp_path))


SCHEDULERS = {
    "step": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "multistep": lambda o: lr_scheduler.MultiStepLR(o, [2, 4], 0.5),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 2),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.5, total_steps=20),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.1, 0.5),
    "function": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (step + 1)),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o), lr_scheduler.MultiStepLR(o, [2, 3])], milestones=[2]
    ),
    "chain": lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.9)]),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_go_on_as_if_nothing_had_happened(tmp_path, name):
    def made():
        optimizer = SGD([nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)
        return optimizer, SCHEDULERS[name](optimizer)

    def rates(optimizer, scheduler, steps):
        result = []
        for _ in range(steps):
            optimizer.step()
            scheduler.step()
            result.append(optimizer.param_groups[0]["lr"])
        return result

    first, second = made(), made()
    rates(*first, 3)
    states = through_files([part.state_dict() for part in first], tmp_path)
    for part, state in zip(second, states, strict=True):
        part.load_state_dict(state)
    assert rates(*second, 6) == rates(*first, 6)


def test_plateau_scheduler_goes_on(tmp_path):
    def made():
        optimizer = SGD([nn.Parameter(torch.ones(1))], lr=0.1)
        return optimizer, lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)

    first, second = made(), made()
    for value in (1.0, 0.5, math.nan, 0.6):
        first[1].step(value)
    second[1].load_state_dict(through_files(first[1].state_dict(), tmp_path))
    assert second[1].state_dict() == first[1].state_dict()

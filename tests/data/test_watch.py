"""Fingerprints differ once something that objects reach has changed, and only then."""

import functools
import os
import sys
import threading
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset

from accmt.data.watch import fingerprint

FACTOR = {"value": 1.0}
LOCK = threading.Lock()  # it cannot be pickled


def scaled(sample):
    return sample * FACTOR["value"]


SUB = ModuleType("tests_watched.sub")
PACKAGE = ModuleType("tests_watched")
PACKAGE.sub, SUB.level = SUB, 1
TIMES = [1]


@functools.lru_cache
def remembered(index):
    return index * TIMES[0]


class Slotted:
    __slots__ = ("value",)


class Hiding:
    """It chooses what is pickled."""

    def __init__(self):
        self.hidden, self.me = 1, self

    def __getstate__(self):
        return {}


class Data(Dataset):
    stage = 1

    def __init__(self):
        kept = self.kept = [1]
        self.array, self.tensor, self.half = np.arange(1000), torch.zeros(1000), torch.zeros(3, dtype=torch.bfloat16)
        self.numpy, self.torch = np.random.default_rng(0), torch.Generator()
        self.nested, self.slotted = {"a": [1, [2]]}, Slotted()
        self.functions = [lambda sample: sample + kept[0], functools.partial(scaled, 2), print]
        self.me, self.hiding = self, Hiding()

    def __getitem__(self, index):
        return scaled(index) + self.LOCK + remembered(index) if index else PACKAGE.sub.level

    def level(self):
        from tests_watched_too import level

        return level

    @property
    def double(self):
        return 2 * self.stage


CHANGES = {
    "an attribute": lambda data: setattr(data, "new", 1),
    "an item of a container": lambda data: data.nested["a"][1].append(3),
    "an array, in place": lambda data: data.array.__setitem__(999, 1),
    "an array, reordered": lambda data: data.array.__setitem__(slice(None), data.array[::-1].copy()),
    "a tensor, past torch": lambda data: data.tensor.numpy().__setitem__(5, 1),
    "a tensor of a type that NumPy lacks": lambda data: data.half.fill_(1),
    "a slot": lambda data: setattr(data.slotted, "value", 2),
    "a generator of NumPy": lambda data: data.numpy.random(),
    "a generator of torch": lambda data: torch.rand(1, generator=data.torch),
    "a closure": lambda data: data.kept.append(2),
    "an attribute of the class": lambda data: setattr(Data, "stage", 2),
    "a method": lambda data: setattr(Data, "__getitem__", lambda self, index: 3),
    "a global variable": lambda data: FACTOR.update(value=2.0),
    "an attribute of a function": lambda data: setattr(scaled, "times", 2),
    "a variable of a module in a package": lambda data: setattr(SUB, "level", 2),
    "a variable that a method imports": lambda data: setattr(sys.modules["tests_watched_too"], "level", 2),
    "what a cached function uses": lambda data: TIMES.append(2),
    "what a cached function has cached": lambda data: remembered(3),
    "what is not pickled": lambda data: setattr(data.hiding, "hidden", 2),
    "the environment": lambda data: os.environ.update(ACCMT_TEST_WATCH="1"),
}
VIEWS = {
    "dataset": lambda data: data,
    "part": lambda data: Subset(data, [1, 2]),
    "method": lambda data: data.__getitem__,
    "closure": lambda data: lambda index: data[index],
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_noticed(monkeypatch, name, view):
    monkeypatch.setattr(Data, "stage", 1)
    monkeypatch.setattr(Data, "__getitem__", Data.__getitem__)
    monkeypatch.setattr(scaled, "times", 1, raising=False)
    monkeypatch.setitem(FACTOR, "value", 1.0)
    monkeypatch.setattr(SUB, "level", 1)
    monkeypatch.setitem(sys.modules, "tests_watched_too", module := ModuleType("tests_watched_too"))
    module.level = 1
    remembered.cache_clear()
    monkeypatch.setitem(os.environ, "ACCMT_TEST_WATCH", "0")
    data = Data()
    looked_at = VIEWS[view](data)
    before = fingerprint(looked_at)
    assert before is not None
    assert fingerprint(looked_at) == before
    CHANGES[name](data)
    assert fingerprint(looked_at) not in (before, None)


def test_so_is_another_working_directory(tmp_path, monkeypatch):
    data = Data()
    before = fingerprint(data)
    monkeypatch.chdir(tmp_path)
    assert fingerprint(data) not in (before, None)


def test_what_cannot_be_looked_through_has_none(tmp_path):
    with (tmp_path / "file").open("w") as file:
        for value in (LOCK, file, iter("a" for _ in "a"), lambda: LOCK):
            assert fingerprint(SimpleNamespace(value=value)) is None


def test_nor_has_what_takes_long(monkeypatch):
    monkeypatch.setattr("accmt.data.watch._MOST", 1000)
    assert fingerprint(np.zeros(100)) is not None
    assert fingerprint(np.zeros(200)) is None
    assert fingerprint(torch.zeros(200, dtype=torch.float64)) is None
    monkeypatch.setattr("accmt.data.watch._LONGEST", -1.0)
    assert fingerprint(np.zeros(100)) is None


def test_an_attribute_does_not_stand_for_the_global_variable_of_its_name():
    """`self.LOCK` in a method does not read LOCK, which has no fingerprint."""
    assert fingerprint(Data()) is not None

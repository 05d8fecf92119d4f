"""Functions that run on one process only: in one process with what a launcher would tell it, and in two real ones."""

import asyncio
import inspect
import json
import os
import subprocess
import sys

import pytest
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from launching import launch

from accmt.decorators import on_last_process, on_local_main_process, on_local_process, on_main_process, on_process

LAUNCHERS = ("PMI", "OMPI_COMM_WORLD", "MV2_COMM_WORLD", "MPI")


@pytest.fixture
def told(monkeypatch):
    """Stand in for a launcher: the index, that on the machine, and the number of processes, in place of Accelerate."""
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})
    for name in [name for name in os.environ if name.startswith(LAUNCHERS)]:
        monkeypatch.delenv(name)

    def tell(index, local_index, count):
        for name, value in (("RANK", index), ("LOCAL_RANK", local_index), ("WORLD_SIZE", count)):
            monkeypatch.delenv(name, raising=False)
            if value is not None:
                monkeypatch.setenv(name, str(value))

    return tell


ALL = {
    "main": on_main_process,
    "main()": on_main_process(),
    "local main": on_local_main_process,
    "local main()": on_local_main_process(),
    "last": on_last_process,
    "last()": on_last_process(),
    "0": on_process(0),
    "2": on_process(process_index=2),
    "local 0": on_local_process(0),
    "local 1": on_local_process(local_process_index=1),
}
MAIN, LAST = ["main", "main()"], ["last", "last()"]
LOCAL_MAIN = ["local main", "local main()"]


@pytest.mark.parametrize(
    ("place", "run"),
    [
        ((None, None, None), [*MAIN, *LOCAL_MAIN, *LAST, "0", "local 0"]),
        ((0, 0, 4), [*MAIN, *LOCAL_MAIN, "0", "local 0"]),
        ((1, 1, 4), ["local 1"]),
        ((2, 0, 4), [*LOCAL_MAIN, "2", "local 0"]),
        ((3, 1, 4), [*LAST, "local 1"]),
    ],
)
def test_which_process_runs(told, place, run):
    decorated = {name: decorator(lambda name=name: name) for name, decorator in ALL.items()}
    told(*place)
    results = {name: function() for name, function in decorated.items()}
    assert results == {name: name if name in run else None for name in ALL}
    assert not AcceleratorState._shared_state


def test_the_process_is_asked_at_every_call(told):
    calls = []
    function = on_main_process(calls.append)
    for index in (0, 1, 0):
        told(index, index, 2)
        function(index)
    assert calls == [0, 0]


def test_once_there_is_an_accelerator_it_is_asked(monkeypatch):
    function = on_process(5)(lambda: "run")
    Accelerator()
    monkeypatch.setenv("RANK", "5")
    assert function() is None
    monkeypatch.setattr(PartialState(), "process_index", 5)
    assert function() == "run"


def test_arguments_result_and_appearance_are_those_of_the_function(told):
    @on_main_process
    def add(first: int, /, second: int = 2, *more: int, scale: int = 1) -> int:
        """Add up."""
        return (first + second + sum(more)) * scale

    told(0, 0, 2)
    assert add(1) == 3
    assert add(1, 3, 4, scale=2) == 16
    assert (add.__name__, add.__doc__) == ("add", "Add up.")
    assert list(inspect.signature(add).parameters) == ["first", "second", "more", "scale"]
    told(1, 1, 2)
    assert add("not", "even", "numbers") is None


def test_methods_of_every_kind(told):
    class Report:
        made = "by the class"

        def __init__(self):
            self.made = "by the object"

        @on_last_process
        def method(self):
            return self.made

        @classmethod
        @on_last_process()
        def of_class(cls):
            return cls.made

        @staticmethod
        @on_process(1)
        def static(value):
            return value

        @property
        @on_local_process(1)
        def value(self):
            return self.made

    told(1, 1, 2)
    report = Report()
    assert [report.method(), Report.of_class(), report.static(3), report.value] == [
        "by the object",
        "by the class",
        3,
        "by the object",
    ]
    told(0, 0, 2)
    assert [report.method(), Report.of_class(), report.static(3), report.value] == [None] * 4


def test_coroutine_functions(told):
    @on_main_process
    async def answer():
        return 42

    assert inspect.iscoroutinefunction(answer)
    told(0, 0, 2)
    assert asyncio.run(answer()) == 42
    told(1, 1, 2)
    assert asyncio.run(answer()) is None


def test_an_exception_goes_to_the_caller(told):
    @on_main_process
    def fail():
        raise KeyError("mine")

    told(0, 0, 2)
    with pytest.raises(KeyError, match="mine"):
        fail()
    told(1, 1, 2)
    assert fail() is None


@pytest.mark.parametrize(
    ("decorate", "kind", "said"),
    [
        (lambda: on_process(len), TypeError, "@on_process needs the index of a process: @on_process(process_index=1)"),
        (
            lambda: on_local_process(len),
            TypeError,
            "@on_local_process needs the index of a process: @on_local_process(local_process_index=1)",
        ),
        (lambda: on_process("1"), TypeError, "@on_process: process_index must be a whole number from 0, not '1' (str)"),
        (
            lambda: on_process(True),
            TypeError,
            "@on_process: process_index must be a whole number from 0, not True (bool)",
        ),
        (
            lambda: on_local_process(-1),
            ValueError,
            "@on_local_process: local_process_index must be a whole number from 0, not -1 (int)",
        ),
        (
            lambda: on_main_process(staticmethod(len)),
            TypeError,
            "@on_main_process is above @staticmethod: put it below",
        ),
        (
            lambda: on_process(0)(classmethod(len)),
            TypeError,
            "@on_process is above @classmethod: put it below",
        ),
        (
            lambda: on_last_process()(5),
            TypeError,
            "@on_last_process: the decorated object must be a function or a method, not 5 (int)",
        ),
        (
            lambda: on_local_main_process(dict),
            TypeError,
            "@on_local_main_process: the decorated object must be a function or a method, not <class 'dict'> (type)",
        ),
    ],
)
def test_what_is_refused(decorate, kind, said):
    with pytest.raises(kind) as raised:
        decorate()
    assert str(raised.value) == said


def test_importing_needs_neither_torch_nor_accelerate():
    code = "import sys, accmt.decorators; print([name for name in ('torch', 'accelerate') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


SCRIPT = """
import json, sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from accmt import AcceleratorModule, Callback, HyperParameters, Trainer
from accmt.decorators import on_last_process, on_local_main_process, on_local_process, on_main_process, on_process

torch.set_num_threads(1)
folder = Path(sys.argv[1])
decorators = {"main": on_main_process, "local main": on_local_main_process, "last": on_last_process}
decorators |= {"0": on_process(0), "1": on_process(1), "2": on_process(2), "local 1": on_local_process(1)}
run = {name: decorator(lambda name=name: name) for name, decorator in decorators.items()}
seen = {}


def look(when):
    seen[when] = [name for name, function in run.items() if function()]
    seen[when].append(torch.distributed.is_initialized())


class Looking(Callback):
    def on_fit_start(self):
        look("during")

    @on_process(1)
    def on_epoch_end(self):
        seen["hook"] = self.state.global_step


class Module(AcceleratorModule):
    def __init__(self):
        self.model = nn.Linear(1, 1)

    def training_step(self, batch):
        return self.model(batch[0]).square().mean()


look("before")
trainer = Trainer(HyperParameters(batch_size=2), folder / "model", callback=Looking(), dataloader_num_workers=0)
trainer.fit(Module(), TensorDataset(torch.ones(8, 1)))
look("after")
(folder / f"{'-'.join(seen['during'][:-1])}.json").write_text(json.dumps(seen))
"""


@pytest.mark.xdist_group("processes")
def test_two_real_processes_before_during_and_after_the_training(tmp_path):
    launch(SCRIPT, tmp_path, processes=2).check()
    for run, hook in ((["main", "local main", "0"], {}), (["last", "1", "local 1"], {"hook": 2})):
        seen = json.loads((tmp_path / f"{'-'.join(run)}.json").read_text())
        assert seen == {"before": [*run, False], "during": [*run, True], "after": [*run, False], **hook}

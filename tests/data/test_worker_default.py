"""Which workers there are by default, how scripts that cannot start any are told, and that none is left behind."""

import multiprocessing
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, StackDataset, Subset, TensorDataset

from accmt import AcceleratorModule
from accmt.data.in_memory import is_ready

TENSORS = TensorDataset(torch.zeros(8, 2))


class Rows(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.zeros(2)


@pytest.mark.parametrize(
    ("dataset", "ready"),
    [
        (TENSORS, True),
        (Subset(TENSORS, [1, 2]), True),
        (ConcatDataset([TENSORS, Subset(TENSORS, [0])]), True),
        (StackDataset(TENSORS, TENSORS), True),
        (StackDataset(a=TENSORS, b=TENSORS), True),
        ([(0.0, 1), (1.0, 0)], True),
        (torch.zeros(3, 2), True),
        (Rows(), False),
        (ConcatDataset([TENSORS, Rows()]), False),
        (Subset(Rows(), [0]), False),
    ],
)
def test_data_in_memory(dataset, ready):
    assert is_ready(dataset, None) is ready
    assert not is_ready(dataset, list)


SCRIPT = """
import multiprocessing
import os
import sys
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset
from accmt import AcceleratorModule, Trainer

class Rows(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        if multiprocessing.parent_process() is not None:
            print("loaded by", os.getpid(), flush=True)
        return torch.zeros(2), torch.zeros(1)

class Module(AcceleratorModule):
    def __init__(self):
        self.model = nn.Linear(2, 1)

    def training_step(self, batch):
        return nn.functional.mse_loss(self.model(batch[0]), batch[1])

def train(data, workers, epochs=1):
    hps = {"epochs": epochs, "batch_size": 4, "optimizer": "SGD"}
    arguments = {"enable_checkpointing": False, "disable_model_saving": True, "dataloader_num_workers": workers}
    Trainer(hps, sys.argv[1], **arguments).fit(Module(), data)
    print("RESULT")

memory = TensorDataset(torch.zeros(8, 2), torch.zeros(8, 1))
"""
START = "import multiprocessing\nmultiprocessing.set_start_method('{method}', force=True)\n"
ADVICE = (
    'Put the training code below `if __name__ == "__main__":`, because a process that is not forked runs the script '
    "from its first line; or load without workers (dataloader_num_workers=0)"
)


@pytest.fixture
def run(tmp_path):
    def run(method, last):
        script = tmp_path / "script.py"
        script.write_text(START.format(method=method) + SCRIPT + last)
        command = [sys.executable, script, tmp_path / "model"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run


def test_a_script_without_a_guard(run):
    """It trains without workers, which is said where they would be of use; where they were asked for, it is refused."""
    ran = run(
        "spawn", "def main():\n    train(memory, None)\n    train(Rows(), None)\n    train(Rows(), 2)\n\nmain()\n"
    )
    assert (ran.returncode, ran.stdout.count("RESULT")) == (1, 2)
    first, second = ran.stdout.split("RESULT")[:2]
    said = f"the data are loaded without workers, which would run the script of the training again. {ADVICE}"
    assert "without workers" not in first
    assert said in " ".join(second.split())
    text = f"the 2 worker(s) of a loader would run the script of the training again. {ADVICE}"
    assert ran.stderr.endswith(f"ConfigError: 1 mistake in the loading of data:\n  dataloader_num_workers: {text}\n")
    assert ran.stderr.count("Traceback") == 1


def test_a_script_with_a_guard_has_its_workers(run):
    ran = run("forkserver", 'if __name__ == "__main__":\n    train(Rows(), 1, epochs=3)\n')
    assert (ran.returncode, ran.stdout.count("RESULT"), ran.stderr) == (0, 1, "")
    loads = [line for line in ran.stdout.splitlines() if line.startswith("loaded by")]
    assert (len(loads), len(set(loads))) == (3 * 8, 1), "one worker for all epochs"


def test_a_worker_does_not_train(run):
    """The first training stands below no guard, and has no workers; those of the second would train it again."""
    ran = run("spawn", 'train(memory, 0)\nif __name__ == "__main__":\n    train(Rows(), 1)\n')
    assert (ran.returncode, ran.stdout.count("RESULT")) == (1, 1)
    assert f"a process that loads data runs the script of the training again. {ADVICE}" in ran.stderr


class Failing(AcceleratorModule):
    def __init__(self, where, persistent):
        self.model = nn.Linear(2, 1)
        self.where, self.persistent = where, persistent

    def fails(self, where):
        if where == self.where:
            raise ArithmeticError("seen")

    def training_step(self, batch):
        self.fails("training")
        return self.model(batch).square().mean()

    def validation_step(self, key, batch):
        self.fails("validation")
        return self.model(batch).square().mean()

    def get_train_dataloader(self, dataset):
        return DataLoader(dataset, 2, num_workers=1, persistent_workers=self.persistent)

    get_validation_dataloader = get_train_dataloader


class Broken(Rows):
    def __getitem__(self, index):
        if index == 5:
            raise ArithmeticError("seen")
        return super().__getitem__(index)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("where", ["training", "validation", "data", "nowhere"])
def test_no_worker_is_left_while_a_traceback_is_kept(trainer, where, persistent):
    """As in a notebook, which keeps the last one."""
    module, data, kept = Failing(where, persistent), Broken() if where == "data" else Rows(), []
    for name, call in {
        "fit": lambda: trainer(epochs=1, quiet=True).fit(module, data, Rows()),
        "evaluate": lambda: trainer().evaluate(module, data),
    }.items():
        try:
            call()
        except ArithmeticError as error:
            kept.append(error)
        assert multiprocessing.active_children() == [], name
    assert len(kept) == {"training": 1, "validation": 2, "data": 2, "nowhere": 0}[where]

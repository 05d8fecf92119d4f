"""What many tests need: small modules, small data, a trainer that is quiet about workers."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import hypothesis
import pytest
import torch
from forks import source_of_servers
from torch import nn
from torch.utils.data import TensorDataset

from accmt import AcceleratorModule, FunctionMetric, HyperParameters, Trainer, set_seed

torch.set_num_threads(1)
# A power cut is not among what happens to these processes, and waiting for disks is most of a small training's time;
# that files are flushed is tested by who calls this, and what a cut leaves by tests/faults, in processes of its own.
os.fsync = os.fstat


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="long counts: of faults, fuzzing, examples and combinations")
    faults = parser.getgroup("faults")
    faults.addoption("--counts", metavar="FOLDER", help="tests/faults: write the counts of each case into this folder")


def pytest_configure(config):
    """How many examples hypothesis tries where a test says nothing of it, and one source of servers for all workers."""
    if getattr(config.option, "numprocesses", None):
        for number in (0, 1):
            source_of_servers(number)
    hypothesis.settings.register_profile("accmt", max_examples=200 if config.getoption("--full") else 60)
    hypothesis.settings.load_profile("accmt")


def pytest_collection_modifyitems(config, items):
    """What is marked as `full` is for --full alone."""
    if not config.getoption("--full"):
        left = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if not item.get_closest_marker("full")]


@pytest.fixture(autouse=True, scope="module")
def _collections_are_short():
    """Each training collects garbage, and would go through all modules and tests so far, for most of its time."""
    gc.collect()
    gc.freeze()


class Regression(AcceleratorModule):
    """A linear model with dropout on four features."""

    def __init__(self, dropout: float = 0.0) -> None:
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))

    def training_step(self, batch):
        inputs, targets = batch
        return nn.functional.mse_loss(self.model(inputs), targets)

    def validation_step(self, key, batch):
        inputs, targets = batch
        outputs = self.model(inputs)
        return {"loss": nn.functional.mse_loss(outputs, targets), "error": (outputs, targets)}


def make_data(count: int, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 4, generator=generator)
    targets = inputs.sum(1, keepdim=True) + 0.1 * torch.randn(count, 1, generator=generator)
    return TensorDataset(inputs, targets)


@pytest.fixture
def full(request):
    """True where everything is to be tried as often as it ever is, and not only as often as time allows."""
    return request.config.getoption("--full")


@pytest.fixture(autouse=True)
def _seed():
    set_seed(0)


@pytest.fixture
def regression():
    """The class of the small module."""
    return Regression


@pytest.fixture
def data():
    """count -> a dataset of that many samples."""
    return make_data


@pytest.fixture
def error_metric():
    """The mean absolute error, lower is better."""
    return lambda: FunctionMetric("error", lambda p, t: (p - t).abs().mean(), greater_is_better=False)


@pytest.fixture
def trainer(tmp_path):
    """Keyword arguments -> a trainer in a temporary folder, two epochs of batches of 4 unless told otherwise."""

    def make(path="model", *, epochs=2, max_steps=None, batch_size=4, optimizer="SGD", lr=0.05, hps=None, **arguments):
        settings = HyperParameters(epochs, max_steps, batch_size, optimizer, {"lr": lr}, **(hps or {}))
        arguments.setdefault("dataloader_num_workers", 0)
        return Trainer(settings, tmp_path / path, **arguments)

    return make

"""A tracker that keeps what it is told, and a loader that says how it was asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from accmt.data.loader_copy import OwnLoader


class Told(GeneralTracker):
    """One run of a tracker of a user: its project, its parameters, and (step, name, value) of all that was sent."""

    name = "told"
    requires_logging_directory = False

    def __init__(self, project):
        super().__init__()
        self.project, self.parameters, self.sent = project, {}, []
        RUNS.append(self)

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        self.parameters |= values

    def log(self, values, step=None, **kwargs):
        self.sent += [(step, name, value) for name, value in values.items()]

    def of(self, wanted):
        """step -> the values of one name."""
        return {step: value for step, name, value in self.sent if name == wanted}


RUNS: list[Told] = []


@pytest.fixture
def runs(monkeypatch):
    """The runs of the tracker `told`, in their order."""
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "told", Told)
    RUNS.clear()
    return RUNS


class Asked(OwnLoader):
    """A loader that keeps how it was asked for; memory cannot be pinned without a GPU, and is not."""

    asked: ClassVar[list[SimpleNamespace]] = []

    def __init__(self, dataset, *arguments, pin_memory=False, **options):
        self.asked.append(SimpleNamespace(pin_memory=pin_memory, **options))
        super().__init__(dataset, *arguments, **options)


@pytest.fixture
def loaders(monkeypatch):
    """How the trainer asked for its loaders, that of the training first."""
    monkeypatch.setattr("accmt.data.loaders.OwnLoader", Asked)
    Asked.asked.clear()
    return Asked.asked


@pytest.fixture
def like_on_a_gpu(monkeypatch):
    """Let the making of loaders believe that this process trains on a GPU."""
    state = SimpleNamespace(device=torch.device("cuda"), num_processes=1, process_index=0)
    monkeypatch.setattr("accmt.data.loaders.PartialState", lambda: state)

"""Whatever the number of workers, data draw the same, and leave the random state of the training as it is."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from accmt import AcceleratorModule, Callback, set_seed

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class Noise(Dataset):
    """Noise of all three generators."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.tensor([torch.rand(()).item(), np.random.rand(), random.random(), index])


class Constant(Noise):
    def __getitem__(self, index):
        return torch.zeros(4)


def noisy_collate(samples):
    return torch.stack(samples) + torch.rand(1)


class Drawing(AcceleratorModule):
    """It keeps what is drawn by the data, and by itself."""

    def __init__(self, loaders=None):
        self.model = nn.Linear(4, 1)
        self.drawn, self.own, self.loaders = [], [], loaders

    def training_step(self, batch):
        self.drawn.append(("training", batch.tolist()))
        self.own.append((torch.rand(()).item(), np.random.rand(), random.random()))
        return self.model(batch).square().mean()

    def validation_step(self, key, batch):
        self.drawn.append((key, batch.tolist()))
        self.own.append(torch.rand(()).item())
        return self.model(batch).square().mean()

    def get_train_dataloader(self, dataset):
        return self.loaders and self.loaders(dataset)

    def get_validation_dataloader(self, dataset):
        return self.loaders and self.loaders(dataset)


class Cut(Callback):
    def on_after_optimizer_step(self, optimizer):
        if self.state.global_step == 2:  # before it is counted: within the third step
            raise KeyboardInterrupt


class Made(DataLoader):
    def __init__(self, dataset, workers):
        super().__init__(dataset, 3, shuffle=True, num_workers=workers, collate_fn=noisy_collate)


def train(trainer, path, workers, *, own=False, data=Noise, **arguments):
    set_seed(1)
    module = Drawing((lambda dataset: Made(dataset, workers)) if own else None)
    collate = {} if own else {"collate_fn": noisy_collate}
    training = trainer(path, dataloader_num_workers=workers, quiet=True, **collate, **arguments)
    training.fit(module, data(), {"a": data(), "b": data()})
    return module


@pytest.mark.parametrize("own", [False, True])
def test_training_and_validation_data_draw_alike(trainer, own):
    none, one, two = (train(trainer, f"{workers}", workers, own=own) for workers in (0, 1, 2))
    assert none.drawn == one.drawn == two.drawn
    assert none.own == one.own == two.own
    rows = [tuple(row) for kind, batch in none.drawn for row in batch if kind == "training"]
    assert len(set(rows)) == 16
    a, b = ([batch for kind, batch in none.drawn if kind == key] for key in "ab")
    assert a[: len(a) // 2] == a[len(a) // 2 :], "the same noise in each evaluation"
    assert a != b


def test_what_the_module_draws_does_not_depend_on_the_data(trainer):
    assert train(trainer, "noise", 0).own == train(trainer, "constant", 0, data=Constant).own


@pytest.mark.parametrize("workers", [0, 2])
def test_after_a_resume_with_other_workers_too(trainer, workers):
    whole = train(trainer, "whole", 0, batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        train(trainer, "cut", 0, batch_size=2, checkpoint_every="1 step", callback=Cut())
    rest = train(trainer, "cut", workers, batch_size=2, checkpoint_every="1 step")
    assert rest.drawn == whole.drawn[2:]
    assert rest.own == whole.own[2:]


def test_an_evaluation_alone_draws_alike(trainer):
    found = []
    for workers in (0, 1, 2):
        set_seed(3)
        module = Drawing()
        trainer(dataloader_num_workers=workers).evaluate(module, Noise())
        found.append((module.drawn, torch.rand(()).item()))
    assert found[0] == found[1] == found[2]

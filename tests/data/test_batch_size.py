"""The number of samples of a batch: what a loader put into it, what the module says, or shapes without a doubt."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, TensorDataset

from accmt import AcceleratorModule
from accmt.data.batch_size import samples_of

X = torch.zeros


class Module(AcceleratorModule):
    """Losses are the values themselves; `evaluate` and training weigh them by samples."""

    def __init__(self):
        self.model = nn.Linear(1, 1)

    def training_step(self, batch):
        return self.values(batch).mean() + 0 * self.model.weight.sum()

    def validation_step(self, key, batch):
        return self.values(batch).mean()

    def values(self, batch):
        return batch[1].float()


class Own(Module):
    def __init__(self, train=None, valid=None):
        super().__init__()
        self.train, self.valid = train, valid

    def get_train_dataloader(self, dataset):
        return self.train and self.train()

    def get_validation_dataloader(self, dataset):
        return self.valid and self.valid()


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (X(4, 3), 4),
        ([X(4, 3), X(4)], 4),
        ([X(4, 3), X(4, 1)], 4),
        ({"x": X(4, 3, 8, 8), "name": "dev", "ids": ["a", "b", "c", "d"]}, 4),
        ((["a", "b"], X(2)), 2),
        (np.zeros((5, 2)), 5),
        (["a", "b", "c"], 3),
        ([X(3, 8, 8), X(3, 8, 8)], None),
        ([[X(3, 8, 8), X(3, 8, 8)], X(2)], None),
        ([X(4, 3), X(5)], None),
        ([X(4), X(())], None),
        ({"x": X(4), "what": object()}, None),
        ("text", None),
    ],
)
def test_shapes_that_leave_no_doubt(batch, size):
    if size is not None:
        assert samples_of(batch, None, Module()) == size
        return
    with pytest.raises(ValueError, match=r"Give Module a method batch_size\(self, batch\) that returns it"):
        samples_of(batch, None, Module())
    assert samples_of(batch, 7, Module()) == 7


def test_a_module_that_says_it():
    class Says(Module):
        def batch_size(self, batch):
            return len(batch["boxes"])

    assert samples_of({"boxes": [1, 2], "x": X(9)}, None, Says()) == 2
    Says.batch_size = lambda self, batch: "four"
    with pytest.raises(ValueError, match=r"Says.batch_size must return a whole number of samples, or None, not 'four'"):
        samples_of({}, None, Says())


def test_an_attribute_of_that_name_is_no_answer():
    module = Module()
    module.batch_size = 32
    assert samples_of(X(4), None, module) == 4


def pairs(count=10):
    return [("text", float(i)) for i in range(count)]


def boxes(samples):
    return [X(3, 8, 8) for _ in samples], torch.tensor([value for _, value in samples])


class Stream(IterableDataset):
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


class Kind(DataLoader):
    """It gives batches of another form."""

    def __iter__(self):
        for batch in super().__iter__():
            yield [X(3, 8, 8), batch[1]]


def batched(sizes=(4, 4, 2)):
    """Batches as they are, whose losses differ."""
    values, start = [], 0
    for size in sizes:
        values.append(torch.arange(float(start), start + size))
        start += size
    return [(X(size, 2), each) for size, each in zip(sizes, values, strict=True)]


TENSORS = TensorDataset(X(10, 2), torch.arange(10.0))
LOADERS = {
    "list of images": lambda: DataLoader(pairs(), 4, collate_fn=boxes),
    "text": lambda: DataLoader(pairs(), 4),
    "workers": lambda: DataLoader(pairs(), 4, collate_fn=boxes, num_workers=2),
    "any order": lambda: DataLoader(pairs(), 4, collate_fn=boxes, num_workers=2, in_order=False),
    "batch sampler": lambda: DataLoader(pairs(), batch_sampler=[[0, 1, 2, 3], [4], [5, 6, 7, 8, 9]], collate_fn=boxes),
    "lists of indices": lambda: DataLoader(
        TENSORS, batch_size=None, sampler=BatchSampler(SequentialSampler(TENSORS), 4, False)
    ),
    "batches": lambda: DataLoader(batched(), batch_size=None),
    "stream": lambda: DataLoader(Stream(pairs()), 4, collate_fn=boxes),
    "stream in a worker": lambda: DataLoader(Stream(pairs()), 4, collate_fn=boxes, num_workers=1),
    "stream of batches": lambda: DataLoader(Stream(batched()), batch_size=None),
    "kind of its own": lambda: Kind(pairs(), 4),
}


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("name", LOADERS)
def test_means_are_over_samples(trainer, name):
    """The mean of 0 to 9, of batches that differ in size, in an evaluation and in a training."""
    module = Own(LOADERS[name], LOADERS[name])
    training = trainer(epochs=1, grad_accumulation_steps=2, enable_checkpointing=False, quiet=True)
    training.fit(module, None, TENSORS)
    assert training.state.additional_metrics["0"]["valid_loss"] == 4.5
    assert training.state.best_train_loss == 4.5


class Dropping(DataLoader):
    """It leaves out its first batch, so that nobody knows which indices a batch was made of."""

    def __iter__(self):
        batches = super().__iter__()
        next(batches)
        for batch in batches:
            yield [X(3, 8, 8), batch[1]]


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(Stream([boxes(pairs(4))]), batch_size=None),
        lambda: DataLoader([boxes(pairs(4))], batch_size=None),
        lambda: Dropping(pairs(), 4),
    ],
)
def test_what_nobody_knows_is_asked_for(trainer, make):
    class Says(Own):
        def batch_size(self, batch):
            return len(batch[1])

    text = "the number of samples in a batch is unknown, and mean losses are weighted by it"
    with pytest.raises(ValueError, match=text):
        trainer().evaluate(Own(valid=make), {"0": pairs()})
    stepped = Own(make)
    before = stepped.model.weight.clone()
    with pytest.raises(ValueError, match=text):
        trainer("b", quiet=True).fit(stepped, None)
    assert torch.equal(stepped.model.weight, before)
    assert trainer().evaluate(Says(valid=make), {"0": pairs()})["0"]["valid_loss"] in (1.5, 6.5)


@pytest.mark.parametrize("size", [4, 10])
def test_the_training_loss_is_the_mean_over_its_samples_in_any_batches(trainer, size):
    """Whatever accumulation: 4, 4 and 2 samples, or 10."""
    losses = []
    for many in (1, 4):
        training = trainer(f"{many}", epochs=1, batch_size=size, grad_accumulation_steps=many, quiet=True)
        training.fit(Module(), TENSORS)
        losses.append(training.state.best_train_loss)
    assert losses == [4.5, 4.5]

"""Every sample once: streams that several workers read, epochs of changing length, samplers that are shared."""

import re

import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    get_worker_info,
)

from accmt import AcceleratorModule, ConfigError, FunctionMetric
from accmt.data.loaders import TrainingData

ITEMS = [torch.tensor([float(i)]) for i in range(10)]
TENSORS = TensorDataset(torch.arange(10.0).unsqueeze(1))

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class Stream(IterableDataset):
    """Each worker reads all of it."""

    def __iter__(self):
        return iter(ITEMS)


class Divided(Stream):
    """Each worker reads its part."""

    def __iter__(self):
        worker = get_worker_info()
        return iter(ITEMS if worker is None else ITEMS[worker.id :: worker.num_workers])


class Constant(Stream):
    def __iter__(self):
        return iter([torch.ones(1)] * 12)


class Seen(AcceleratorModule):
    def __init__(self, train=None, valid=None):
        self.model = nn.Linear(1, 1)
        self.seen, self.train, self.valid = [], train, valid

    def training_step(self, batch):
        batch = batch[0] if isinstance(batch, list) else batch
        self.seen += batch.flatten().int().tolist()
        return self.model(batch).square().mean()

    def validation_step(self, key, batch):
        batch = batch[0] if isinstance(batch, list) else batch
        return {"loss": batch.mean(), "count": (batch,)}

    def get_train_dataloader(self, dataset):
        return self.train

    def get_validation_dataloader(self, dataset):
        return self.valid


def count():
    return FunctionMetric("count", len, greater_is_better=True)


@pytest.mark.parametrize("size", [4, 1, 10])
def test_a_validation_stream_that_each_worker_reads_is_refused(trainer, size):
    text = (
        "the validation data 'valid': each of 2 workers reads all samples of the stream, so that they count 2 times: "
    )
    with pytest.raises(RuntimeError, match=re.escape(text + "divide them in __iter__")):
        trainer(batch_size=(4, size), dataloader_num_workers=2).evaluate(Seen(), Stream())


@pytest.mark.parametrize(("stream", "expected"), [(Divided(), 10), (Constant(), 24)])
def test_other_streams_are_read_as_they_are(trainer, stream, expected):
    values = trainer(metrics=count(), dataloader_num_workers=2).evaluate(Seen(), stream)
    assert values["0"]["count"] == expected


def test_a_training_stream_that_each_worker_reads_is_said(trainer, capsys):
    trainer(epochs=1, dataloader_num_workers=2, quiet=True).fit(Seen(), Stream())
    said = capsys.readouterr().out
    assert said.count("warning: the training data: each of 2 workers reads all samples of the stream") == 1


class Growing(BatchSampler):
    """Another number of batches in each epoch."""

    def __init__(self, lengths):
        self.lengths, self.epoch = lengths, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        return iter([[2 * i, 2 * i + 1] for i in range(self.lengths[self.epoch])])

    def __len__(self):
        return self.lengths[self.epoch]


class Unsized(Growing):
    def __len__(self):
        raise TypeError("unknown")


@pytest.mark.parametrize("lengths", [(3, 5), (5, 3)])
def test_epochs_of_another_length(trainer, lengths):
    text = f"epoch 1 of the training data has {lengths[1]} batches of this process, and {lengths[0]} were counted"
    with pytest.raises(RuntimeError, match=text):
        trainer(quiet=True).fit(Seen(DataLoader(TENSORS, batch_sampler=Growing(lengths))))
    module = Seen(DataLoader(TENSORS, batch_sampler=Unsized(lengths)))
    trainer("unknown", quiet=True).fit(module)
    assert module.seen == [*range(2 * lengths[0]), *range(2 * lengths[1])]


def test_loaders_that_share_a_sampler_do_not_disturb_each_other(trainer):
    """With replacement, indices are drawn little by little, also between evaluations within an epoch."""

    def trained(shared):
        generator = torch.Generator().manual_seed(5)
        batches = BatchSampler(RandomSampler(TENSORS, replacement=True, num_samples=80, generator=generator), 2, False)
        valid = batches if shared else BatchSampler(range(10), 4, False)
        module = Seen(DataLoader(TENSORS, batch_sampler=batches), DataLoader(TENSORS, batch_sampler=valid))
        trainer(f"{shared}", epochs=1, evaluate_every_n_steps=3, quiet=True, resume=False).fit(module, None, TENSORS)
        return module.seen

    assert trained(True) == trained(False)


def test_what_a_module_gives_must_be_a_loader(trainer):
    with pytest.raises(ConfigError, match=r"train_dataset: must be a torch DataLoader, not \[1, 2\] \(list\)"):
        trainer().fit(Seen([1, 2]))


def test_a_loader_that_an_accelerator_prepared_is_taken_up_anywhere():
    from accelerate import Accelerator

    loader = Accelerator(cpu=True).prepare(DataLoader(TENSORS, 2))
    from accmt.data.user_loaders import whole

    data = TrainingData(whole(loader, "train_dataset"), 1, 7)
    batches = [batch[0].flatten().tolist() for window in data.windows(0, 3) for _, batch in window.batches]
    assert batches == [[6, 7], [8, 9]]


class Rows(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.zeros(1)

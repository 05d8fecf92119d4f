"""How training and validation data become batches: order, workers, memory, device, the module's own loaders."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from torch import nn
from torch.utils.data import DataLoader, Dataset, SequentialSampler, Subset, SubsetRandomSampler, TensorDataset

from accmt import AcceleratorModule, Callback
from accmt.data.device import DeviceTransfer


class Numbered(AcceleratorModule):
    """Keeps the numbers of the samples that each training step and each validation step is given."""

    def __init__(self):
        self.model = nn.Linear(1, 1)
        self.trained, self.validated = [], []

    def training_step(self, batch):
        self.trained.append(batch[0].flatten().int().tolist())
        return self.model(batch[0]).square().mean()

    def validation_step(self, key, batch):
        self.validated.append(batch[0].flatten().int().tolist())
        return self.model(batch[0]).square().mean()

    @property
    def order(self):
        return [number for batch in self.trained for number in batch]


def numbers(count):
    return TensorDataset(torch.arange(float(count)).unsqueeze(1))


def epochs_of(order, count):
    return [order[start : start + count] for start in range(0, len(order), count)]


@pytest.mark.proves("Trainer(shuffle_train)")
@pytest.mark.parametrize("arguments", [{}, {"shuffle_train": True}])
def test_training_data_are_shuffled_in_each_epoch_and_validation_data_never(trainer, arguments):
    module = Numbered()
    trainer(lr=1e-6, **arguments).fit(module, numbers(20), numbers(6))
    first, second = epochs_of(module.order, 20)
    assert sorted(first) == sorted(second) == list(range(20))
    assert list(range(20)) != first != second
    assert module.validated == [[0, 1, 2, 3], [4, 5]] * 2


@pytest.mark.proves("Trainer(shuffle_train)")
def test_without_shuffling_they_come_in_their_order(trainer):
    module = Numbered()
    trainer(lr=1e-6, shuffle_train=False).fit(module, numbers(20))
    assert module.order == list(range(20)) * 2


@pytest.mark.proves("Trainer(sampler)")
def test_samplers_that_follow_each_other(trainer):
    """In every epoch all samples of the first, then all of the second; batches go over the boundary."""
    data = numbers(20)
    samplers = [SequentialSampler(Subset(data, range(3))), SubsetRandomSampler(range(10, 20))]
    module = Numbered()
    trainer(lr=1e-6, sampler=samplers).fit(module, data)
    assert [len(batch) for batch in module.trained] == [4, 4, 4, 1] * 2
    first, second = epochs_of(module.order, 13)
    assert first[:3] == second[:3] == [0, 1, 2]
    assert sorted(first[3:]) == sorted(second[3:]) == list(range(10, 20))
    assert first[3:] != second[3:]


@pytest.mark.proves("Trainer(sampler)")
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("make", [lambda: [5, 3, 3, 8], lambda: SubsetRandomSampler([5, 3, 3, 8])])
def test_a_sampler_goes_before_shuffling(trainer, make, shuffle):
    module, sampler = Numbered(), make()
    trainer(epochs=1, lr=1e-6, sampler=sampler, shuffle_train=shuffle).fit(module, numbers(20))
    assert sorted(module.order) == [3, 3, 5, 8]
    if isinstance(sampler, list):
        assert module.order == [5, 3, 3, 8]


@pytest.mark.proves("Trainer(dataloader_drop_last)")
def test_a_last_incomplete_batch_is_left_out_of_the_training_only(trainer):
    for drop_last, trained in ((False, [4, 4, 2]), (True, [4, 4])):
        module = Numbered()
        training = trainer(str(drop_last), epochs=1, lr=1e-6, dataloader_drop_last=drop_last)
        training.fit(module, numbers(10), numbers(6))
        assert [len(batch) for batch in module.trained] == trained
        assert [len(batch) for batch in module.validated] == [4, 2]


@pytest.mark.proves("Trainer(dataloader_pin_memory)")
@pytest.mark.parametrize(
    ("arguments", "pinned"),
    [({}, True), ({"dataloader_pin_memory": True}, True), ({"dataloader_pin_memory": False}, False)],
)
@pytest.mark.usefixtures("like_on_a_gpu")
def test_memory_is_pinned_where_there_is_a_gpu(trainer, loaders, arguments, pinned):
    trainer(epochs=1, lr=1e-6, **arguments).fit(Numbered(), numbers(8), numbers(4))
    assert [loader.pin_memory for loader in loaders] == [pinned, pinned]


@pytest.mark.proves("Trainer(dataloader_pin_memory)")
def test_no_memory_is_pinned_without_one(trainer, loaders):
    trainer(epochs=1, lr=1e-6, dataloader_pin_memory=True).fit(Numbered(), numbers(8), numbers(4))
    assert [loader.pin_memory for loader in loaders] == [False, False]


class Loading(Dataset):
    """Samples that have to be loaded."""

    def __init__(self, count):
        self.samples = numbers(count)

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


@pytest.mark.proves("Trainer(dataloader_num_workers)")
@pytest.mark.parametrize(
    ("given", "workers", "make"), [(None, 1, Loading), (None, 0, numbers), (0, 0, Loading), (2, 2, numbers)]
)
def test_as_many_workers_as_processes_or_as_given(trainer, loaders, given, workers, make):
    """Two processes are in test_effects_processes.py; data that lie in memory need none."""
    module = Numbered()
    trainer(epochs=1, lr=1e-6, shuffle_train=False, dataloader_num_workers=given).fit(module, make(8), make(4))
    assert [loader.num_workers for loader in loaders] == [workers, workers]
    assert module.order == list(range(8))


class Looking(AcceleratorModule):
    """Keeps the devices and types of its batches, and computes with nothing of them."""

    def __init__(self):
        self.model = nn.Linear(1, 1)
        self.seen = {"training": set(), "validation": set()}

    def look(self, kind, batch):
        self.seen[kind].add((batch[0].device.type, batch[0].dtype))

    def training_step(self, batch):
        self.look("training", batch)
        return self.model(torch.ones(1, 1)).mean()

    def validation_step(self, key, batch):
        self.look("validation", batch)
        return torch.ones(())


@pytest.fixture
def elsewhere(monkeypatch):
    """Settings of an Accelerator -> batches are put where they belong with it, and everything else stays here."""

    def stand_in(**settings):
        plain = {"device": torch.device("cpu"), "distributed_type": DistributedType.NO, "mixed_precision": "no"}
        accelerator, real = SimpleNamespace(**{**plain, **settings}), DeviceTransfer.of
        monkeypatch.setattr(
            DeviceTransfer, "of", lambda _, *, moves, converts: real(accelerator, moves=moves, converts=converts)
        )

    return stand_in


@pytest.mark.proves("Trainer(batch_device_placement)")
@pytest.mark.parametrize(
    ("arguments", "device"),
    [({}, "meta"), ({"batch_device_placement": True}, "meta"), ({"batch_device_placement": False}, "cpu")],
)
def test_batches_are_moved_to_the_device_of_the_process(trainer, elsewhere, arguments, device):
    """The device of tensors without content stands for a GPU."""
    elsewhere(device=torch.device("meta"))
    module = Looking()
    trainer(epochs=1, **arguments).fit(module, numbers(8), numbers(4))
    expected = {(device, torch.float32)}
    assert module.seen == {"training": expected, "validation": expected}


@pytest.mark.proves("Trainer(prepare_batch)")
@pytest.mark.parametrize(
    ("arguments", "dtype"),
    [({}, torch.bfloat16), ({"prepare_batch": True}, torch.bfloat16), ({"prepare_batch": False}, torch.float32)],
)
def test_batches_are_converted_for_deepspeed_in_low_precision(trainer, elsewhere, arguments, dtype):
    elsewhere(distributed_type=DistributedType.DEEPSPEED, mixed_precision="bf16")
    module = Looking()
    trainer(epochs=1, **arguments).fit(module, numbers(8), numbers(4))
    assert module.seen == {"training": {("cpu", dtype)}, "validation": {("cpu", dtype)}}


@pytest.mark.proves(
    "Trainer.fit(train_dataset)",
    "AcceleratorModule.get_train_dataloader",
    "AcceleratorModule.get_train_dataloader(dataset)",
    "AcceleratorModule.get_validation_dataloader",
    "AcceleratorModule.get_validation_dataloader(dataset)",
)
def test_loaders_of_a_module_get_the_datasets_of_fit(trainer):
    given = []

    class Own(Numbered):
        def get_train_dataloader(self, dataset):
            given.append(("train", dataset))
            return DataLoader(Subset(dataset, [7, 1, 4]), batch_size=2)

        def get_validation_dataloader(self, dataset):
            given.append(("validation", dataset))
            return DataLoader(dataset, batch_size=5)

    module, train, dev, test = Own(), numbers(8), numbers(6), numbers(3)
    trainer(epochs=1, lr=1e-6).fit(module, train, {"dev": dev, "test": test})
    assert module.trained == [[7, 1], [4]]
    assert module.validated == [[0, 1, 2, 3, 4], [5], [0, 1, 2]]
    assert [(name, id(dataset)) for name, dataset in given] == [
        ("train", id(train)),
        ("validation", id(dev)),
        ("validation", id(test)),
    ]


@pytest.mark.proves("AcceleratorModule.get_train_dataloader", "AcceleratorModule.get_validation_dataloader")
def test_a_module_may_leave_a_loader_to_the_trainer(trainer):
    """None, what the methods give by themselves, stands for the trainer's loader."""

    class Some(Numbered):
        def get_train_dataloader(self, dataset):
            return super().get_train_dataloader(dataset)

        def get_validation_dataloader(self, dataset):
            return None if len(dataset) > 3 else DataLoader(dataset, batch_size=1)

    module = Some()
    trainer(epochs=1, lr=1e-6, shuffle_train=False).fit(module, numbers(8), [numbers(6), numbers(2)])
    assert module.trained == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert module.validated == [[0, 1, 2, 3], [4, 5], [0], [1]]


def collating(factor):
    def collate(samples):
        return [factor * torch.stack([sample[0] for sample in samples])]

    return collate


@pytest.mark.proves("Trainer(collate_fn)", "Trainer(collate_fn_train)", "Trainer(collate_fn_val)")
@pytest.mark.parametrize(
    ("arguments", "trained", "validated"),
    [
        ({}, [0, 1], [0, 1]),
        ({"collate_fn": collating(10)}, [0, 10], [0, 10]),
        ({"collate_fn_train": collating(10)}, [0, 10], [0, 1]),
        ({"collate_fn_val": collating(10)}, [0, 1], [0, 10]),
        ({"collate_fn_train": collating(10), "collate_fn_val": collating(100)}, [0, 10], [0, 100]),
    ],
)
def test_what_makes_batches_of_samples(trainer, arguments, trained, validated):
    module = Numbered()
    trainer(epochs=1, lr=1e-6, shuffle_train=False, **arguments).fit(module, numbers(2), numbers(2))
    assert (module.trained, module.validated) == ([trained], [validated])


@pytest.mark.proves(
    "AcceleratorModule.training_step(batch)",
    "AcceleratorModule.validation_step(batch)",
    "callbacks.Callback.on_before_training_step(batch)",
    "callbacks.Callback.on_before_validation_step(batch)",
)
def test_a_batch_in_the_hooks_is_that_of_the_step(trainer):
    class Seen(Callback):
        def on_fit_start(self):
            self.trained, self.validated = [], []

        def on_before_training_step(self, batch):
            self.trained.append(batch[0].flatten().int().tolist())

        def on_before_validation_step(self, batch):
            self.validated.append(batch[0].flatten().int().tolist())

    module, seen = Numbered(), Seen()
    trainer(epochs=1, lr=1e-6, callback=seen).fit(module, numbers(10), numbers(6))
    assert (seen.trained, seen.validated) == (module.trained, module.validated)

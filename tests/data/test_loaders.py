"""Training batches: their order is a function of (seed, epoch), and an epoch can be taken up anywhere."""

import gc
import multiprocessing
import random

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)

from accmt.data.loaders import DataOptions, TrainingData, training_loader, validation_loader


class Numbers(Dataset):
    """0, 1, 2, ...; it writes down which samples were loaded."""

    def __init__(self, count):
        self.count, self.loaded = count, []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.loaded.append(index)
        return index


class Stream(IterableDataset):
    """0, 1, 2, ... of a length that it does not tell."""

    def __init__(self, count):
        self.count = count

    def __iter__(self):
        worker = get_worker_info()
        return iter(range(0 if worker is None else worker.id, self.count, 1 if worker is None else worker.num_workers))


class SizedStream(Stream):
    def __len__(self):
        return self.count


def options(**given):
    settings = {
        "batch_size": 4,
        "eval_batch_size": 3,
        "shuffle": True,
        "sampler": None,
        "collate_train": None,
        "collate_val": None,
        "workers": 0,
        "pin_memory": True,
        "drop_last": False,
    }
    return DataOptions(**{**settings, **given})


def data_of(count=21, *, accumulation=1, seed=7, **given):
    return TrainingData(training_loader(Numbers(count), options(**given), None), accumulation, seed)


def lists(windows):
    return [[batch.tolist() for _, batch in window.batches] for window in windows]


def epoch_of(data, epoch=0, skip=0):
    return lists(data.windows(epoch, skip))


def batches_of(data, epoch=0, skip=0):
    return [batch for window in epoch_of(data, epoch, skip) for batch in window]


def samples_of(data, epoch=0, skip=0):
    return [sample for batch in batches_of(data, epoch, skip) for sample in batch]


@pytest.fixture
def untouched():
    """Asserts that nothing drew from the process-wide generators."""
    before = (random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2], torch.get_rng_state())
    yield
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1].tolist(), np.random.get_state()[2]) == before[1:3]
    assert torch.equal(torch.get_rng_state(), before[3])


@pytest.mark.usefixtures("untouched")
def test_order_is_a_function_of_seed_and_epoch():
    data = data_of()
    orders = {epoch: samples_of(data, epoch) for epoch in (0, 1, 2)}
    assert all(sorted(order) == list(range(21)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 3
    assert samples_of(data, 1) == orders[1], "an epoch that is done again, or after another"
    assert samples_of(data_of(), 2) == orders[2], "another object"
    assert samples_of(data_of(seed=8), 2) != orders[2]


def test_order_does_not_depend_on_the_process_wide_generators():
    orders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        orders.append(samples_of(data_of()))
    assert orders[0] == orders[1]


def test_seed_can_be_set_later():
    data = data_of(seed=1)
    data.seed = 7
    assert samples_of(data) == samples_of(data_of(seed=7))


@pytest.mark.usefixtures("untouched")
def test_without_shuffling():
    assert samples_of(data_of(shuffle=False)) == list(range(21))


@pytest.mark.parametrize(
    ("count", "accumulation", "sizes"),
    [(21, 1, [1] * 6), (21, 2, [2, 2, 2]), (21, 4, [4, 2]), (21, 9, [6]), (20, 5, [5]), (1, 3, [1])],
)
def test_windows(count, accumulation, sizes):
    """The last window of an epoch may be short, and says so."""
    data = data_of(count, accumulation=accumulation, shuffle=False)
    windows = list(data.windows(0))
    assert [window.size for window in windows] == sizes
    assert [window.is_last for window in windows] == [False] * (len(sizes) - 1) + [True]
    assert data.steps_per_epoch == len(sizes)
    assert data.batches_per_epoch == sum(sizes)
    assert data.samples_per_step == 4 * accumulation
    found = lists(data.windows(0))
    assert [len(window) for window in found] == sizes
    assert [sample for window in found for batch in window for sample in batch] == list(range(count))


def test_drop_last():
    data = data_of(21, drop_last=True, shuffle=False)
    assert samples_of(data) == list(range(20))
    assert data.batches_per_epoch == 5
    assert data.samples_after(5) == 20


class Reversed(Sampler):
    """A sampler without a generator, that is told the epoch."""

    def __init__(self, count):
        self.count, self.epoch = count, 0

    def __iter__(self):
        order = list(range(self.count))[:: -1 if self.epoch % 2 else 1]
        return iter(order)

    def __len__(self):
        return self.count

    def set_epoch(self, epoch):
        self.epoch = epoch


def generator(seed):
    return torch.Generator().manual_seed(seed)


WEIGHTS = [1.0, 5.0] * 10 + [0.0]
SAMPLERS = {
    "default": lambda: None,
    "random": lambda: RandomSampler(range(21)),
    "random with a generator": lambda: RandomSampler(range(21), generator=generator(3)),
    "random with replacement": lambda: RandomSampler(range(21), replacement=True, num_samples=30),
    "weighted": lambda: WeightedRandomSampler(WEIGHTS, 21),
    "weighted with a generator": lambda: WeightedRandomSampler(WEIGHTS, 21, generator=generator(3)),
    "subset": lambda: SubsetRandomSampler(list(range(0, 21, 2))),
    "sequential": lambda: SequentialSampler(range(21)),
    "list": lambda: [3, 1, 4, 1, 5, 9, 2, 6],
    "own": lambda: Reversed(21),
}


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.usefixtures("untouched")
def test_every_sampler_can_be_taken_up_anywhere(name, accumulation):
    """After any number of windows, in any epoch, by another object, the rest is exactly the rest."""
    for epoch in (0, 3):
        whole = epoch_of(data_of(sampler=SAMPLERS[name](), accumulation=accumulation), epoch)
        for done in range(len(whole)):
            data = data_of(sampler=SAMPLERS[name](), accumulation=accumulation)
            assert epoch_of(data, epoch, skip=done * accumulation) == whole[done:]


@pytest.mark.parametrize("name", ["random", "random with a generator", "random with replacement", "weighted", "subset"])
def test_random_samplers_differ_between_epochs(name):
    data = data_of(sampler=SAMPLERS[name]())
    assert samples_of(data, 0) != samples_of(data, 1)


def test_a_seed_that_the_user_gave_a_sampler_is_kept():
    """Then the order follows that seed, whatever the training's is."""
    orders = [
        samples_of(data_of(sampler=RandomSampler(range(21), generator=generator(own)), seed=seed))
        for own, seed in ((3, 7), (3, 8), (4, 7))
    ]
    assert orders[0] == orders[1] != orders[2]
    free = [samples_of(data_of(sampler=RandomSampler(range(21)), seed=seed)) for seed in (7, 8)]
    assert free[0] != free[1]


def test_weights_are_those_of_the_user():
    drawn = samples_of(data_of(sampler=WeightedRandomSampler(WEIGHTS, 3000)))
    assert 20 not in drawn
    odd = sum(sample % 2 for sample in drawn)
    assert 0.78 < odd / 3000 < 0.88  # 50 of 60


def test_a_sampler_that_is_told_the_epoch():
    data = data_of(sampler=Reversed(21))
    assert samples_of(data, 0) == list(range(21))
    assert samples_of(data, 1) == list(range(21))[::-1]


def test_skipped_samples_are_not_loaded_and_the_moment_is_told():
    loader = training_loader(Numbers(21), options(shuffle=False), None)
    data, moments = TrainingData(loader, 1, 7), []
    rest = data.windows(0, 3, lambda: moments.append(list(loader.dataset.loaded)))
    _, first = next(next(rest).batches)
    assert first.tolist() == [12, 13, 14, 15]
    assert moments == [[]], "nothing was loaded before it was told, and it was told once"
    assert loader.dataset.loaded == [12, 13, 14, 15]


@pytest.mark.parametrize("skip", [0, 2])
@pytest.mark.parametrize("kind", [Numbers, Stream, SizedStream])
def test_the_moment_is_told_once_and_before_the_next_batch(kind, skip):
    data, calls = TrainingData(DataLoader(kind(21), 4), 2, 7), []
    windows = data.windows(0, skip, lambda: calls.append(1))
    next(next(windows).batches)
    assert calls == [1]


@pytest.mark.parametrize("kind", [Numbers, Stream, SizedStream])
def test_fewer_data_than_the_checkpoint_knows_is_an_error(kind):
    data = TrainingData(DataLoader(kind(8), 4), 1, 7)
    if data.batches_per_epoch is not None:
        data.batches_per_epoch = 9
    with pytest.raises(RuntimeError) as caught:
        batches_of(data, skip=3)
    assert str(caught.value) == (
        "the training continues after 3 batches of an epoch, but the data end after 2: "
        "they are not the data that the checkpoint was made with"
    )


BATCH_SAMPLERS = {
    "of a sampler": lambda: BatchSampler(RandomSampler(range(21), generator=generator(3)), 4, False),
    "of a sampler without a generator": lambda: BatchSampler(RandomSampler(range(21)), 4, False),
    "dropping the last": lambda: BatchSampler(SequentialSampler(range(21)), 4, True),
    "list of lists": lambda: [[0, 1, 2], [3], [4, 5, 6, 7], [8, 9]],
}


@pytest.mark.parametrize("name", BATCH_SAMPLERS)
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.usefixtures("untouched")
def test_batch_samplers_can_be_taken_up_anywhere(name, accumulation):
    def made():
        return TrainingData(DataLoader(Numbers(21), batch_sampler=BATCH_SAMPLERS[name]()), accumulation, 7)

    for epoch in (0, 2):
        whole = epoch_of(made(), epoch)
        assert len(whole) == made().steps_per_epoch
        for done in range(len(whole)):
            assert epoch_of(made(), epoch, skip=done * accumulation) == whole[done:]


def test_samples_of_batch_samplers_are_counted():
    data = TrainingData(DataLoader(Numbers(21), batch_sampler=BATCH_SAMPLERS["of a sampler"]()), 2, 7)
    assert [data.samples_after(batches) for batches in (0, 1, 5, 6)] == [0, 4, 20, 21]
    assert data.samples_per_step == 8


def test_samples_after():
    data = data_of(21)
    assert [data.samples_after(batches) for batches in range(7)] == [0, 4, 8, 12, 16, 20, 21]
    weighted = data_of(sampler=WeightedRandomSampler(WEIGHTS, 6))
    assert [weighted.samples_after(batches) for batches in range(3)] == [0, 4, 6]
    assert TrainingData(DataLoader(Stream(21), 4), 1, 7).samples_after(6) == 24


@pytest.mark.parametrize("kind", [Stream, SizedStream])
@pytest.mark.parametrize("count", [1, 8, 21])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.usefixtures("untouched")
def test_streams(kind, count, accumulation):
    def made():
        return TrainingData(DataLoader(kind(count), 4), accumulation, 7)

    data, batches = made(), -(-count // 4)
    assert data.batches_per_epoch == (batches if kind is SizedStream else None)
    assert data.steps_per_epoch == (-(-batches // accumulation) if kind is SizedStream else None)
    windows = [(window.size, window.is_last, len(list(window.batches))) for window in data.windows(0)]
    steps = -(-batches // accumulation)
    assert [is_last for _, is_last, _ in windows] == [False] * (steps - 1) + [True]
    assert all(size == found for size, _, found in windows)
    whole = epoch_of(made())
    assert [sample for window in whole for batch in window for sample in batch] == list(range(count))
    for done in range(len(whole)):
        assert epoch_of(made(), skip=done * accumulation) == whole[done:]


def test_an_empty_stream_has_no_window():
    assert epoch_of(TrainingData(DataLoader(Stream(0), 4), 1, 7)) == []


def test_a_dataset_of_batches():
    """batch_size=None: each element is a batch."""
    data = TrainingData(DataLoader(torch.arange(6.0).reshape(3, 2), batch_size=None, shuffle=True), 2, 7)
    whole = batches_of(data)
    assert sorted(whole) == [[0, 1], [2, 3], [4, 5]]
    assert batches_of(data, skip=2) == whole[2:]
    assert data.samples_after(2) == 2


class Noisy(Numbers):
    """A random number beside every sample, from the worker's generator."""

    def __getitem__(self, index):
        return torch.tensor([index, int(torch.randint(1000, ()))])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("persistent", [False, True])
def test_two_workers_give_the_same(persistent):
    plain = batches_of(data_of())

    def made(dataset):
        arguments = {"num_workers": 2, "persistent_workers": persistent}
        sampler = RandomSampler(dataset, generator=torch.Generator())
        return TrainingData(DataLoader(dataset, 4, sampler=sampler, **arguments), 1, 7)

    state = torch.get_rng_state()
    data = made(Numbers(21))
    assert batches_of(data) == plain
    assert batches_of(data, 0, skip=4) == plain[4:]
    assert batches_of(data, 1) == batches_of(data_of(), 1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_of_an_epoch_draw_the_same_whatever_the_process_drew():
    def drawn(seed):
        torch.manual_seed(seed)
        return batches_of(TrainingData(training_loader(Noisy(21), options(workers=2), None), 1, 7), 1)

    assert drawn(1) == drawn(2)


def test_loaders_of_datasets():
    train = training_loader(Numbers(21), options(drop_last=True), list)
    assert (train.batch_size, train.drop_last, train.num_workers, train.collate_fn) == (4, True, 0, list)
    assert isinstance(train.sampler, RandomSampler)
    assert not train.pin_memory
    assert training_loader(Numbers(21), options(workers=None), None).num_workers == 1
    valid = validation_loader(Numbers(7), options(drop_last=True, sampler=[0]), None)
    assert [batch.tolist() for batch in valid] == [[0, 1, 2], [3, 4, 5], [6]]
    stream = training_loader(Stream(5), options(), None)
    assert [batch.tolist() for batch in stream] == [[0, 1, 2, 3], [4]]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_data_that_end_before_their_length_are_an_error(trainer, regression, data, accumulation):
    class Short(SizedStream):
        """Says 20 samples, and gives 10."""

        def __iter__(self):
            return (data(20)[i] for i in range(10))

    expected = "the training data end early: their length promises 5 batches of this process in each epoch"
    with pytest.raises(RuntimeError, match=expected):
        trainer(grad_accumulation_steps=accumulation).fit(regression(), Short(20))


class Kind(DataLoader):
    """A loader of a kind of its own, which counts how often loaders of its kind were read."""

    times = 0

    def __iter__(self):
        Kind.times += 1
        return super().__iter__()


@pytest.mark.parametrize("dataset", [Numbers(21), Stream(21)])
def test_the_loader_of_a_user_stays_as_it_is(dataset):
    """What is read is one of its kind; its own class, options and iteration are untouched."""
    generator = torch.Generator().manual_seed(3)
    loader = Kind(dataset, 4, generator=generator)
    before, Kind.times = dict(vars(loader)), 0
    data = TrainingData(loader, 1, 7)
    assert samples_of(data) == samples_of(data, 1) == list(range(21))
    assert vars(loader) == before
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(3).get_state())
    assert batches_of(data) == [batch.tolist() for batch in DataLoader(dataset, 4)]
    assert Kind.times == 3, "what is read is of its kind"
    assert [batch.tolist() for batch in loader] == batches_of(data)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_end_with_their_data_without_waiting_for_the_garbage_collector(persistent):
    """Workers of a loader that is in a cycle of references cannot be told to end."""
    loader = DataLoader(Numbers(21), 4, num_workers=1, persistent_workers=persistent)
    gc.collect()
    gc.disable()
    try:
        data = TrainingData(loader, 1, 7)
        windows = data.windows(0, 1)
        assert next(next(windows).batches)[1].tolist() == [4, 5, 6, 7]
        assert len(multiprocessing.active_children()) == 1
        del data, windows
        assert multiprocessing.active_children() == []
    finally:
        gc.enable()


def test_before_the_first_window_the_state_is_that_of_the_start():
    data = data_of()
    state = data.state()
    other = data_of(seed=7)
    assert other.restore(state) == []
    assert other.state() == state
    assert samples_of(other) == samples_of(data)


class Own(Numbers):
    def __init__(self, count):
        super().__init__(count)
        self.random = random.Random(1)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: DataLoader(Own(21), 4), []),
        (
            lambda: DataLoader(Own(21), 4, num_workers=1),
            [
                "the training data were loaded by 0 worker(s) and are loaded by 1 now: random draws while "
                "they are loaded will differ"
            ],
        ),
        (
            lambda: DataLoader(Numbers(21), 4),
            ["random generators of the checkpoint no longer exist: dataset.random"],
        ),
    ],
)
def test_what_has_changed_is_told(make, expected):
    state = TrainingData(DataLoader(Own(21), 4), 1, 7).state()
    assert TrainingData(make(), 1, 7).restore(state) == expected


def test_a_state_of_another_number_of_processes_is_left_alone():
    """Its process read another part of the data. The seed of a sampler is still that of then."""
    given = TrainingData(DataLoader(Numbers(21), 4, sampler=RandomSampler(range(21), generator=generator(3))), 1, 7)
    data = TrainingData(DataLoader(Numbers(21), 4, sampler=RandomSampler(range(21), generator=generator(4))), 1, 7)
    assert data.restore({**given.state(), "processes": 2, "workers": 5}) == []
    assert samples_of(data) == samples_of(given)

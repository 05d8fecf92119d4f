"""Data of every kind resume where they were: neither a sample nor what is drawn at random with it differs.

The tests do with `TrainingData` what the training loop does with it, draws of a model in between included.
"""

import json
import random
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    Subset,
    default_collate,
    get_worker_info,
)

from accmt import set_seed
from accmt.checkpoint.rng import random_state, set_random_state
from accmt.checkpoint.serialization import pack, unpack
from accmt.data.loaders import TrainingData

CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
]


@dataclass
class Kept:
    """What a checkpoint keeps of the data."""

    epoch: int
    batch: int
    state: str
    tensors: dict[str, torch.Tensor]
    now: dict[str, torch.Tensor]
    at_start: dict[str, torch.Tensor]


def trained(make, *, accumulation=1, epochs=2, until=None, kept=None, seed=0, keep=(), limit=None):
    """The batches of each step, with what a model draws in it, and what is kept after `until` of them; or, with `keep`,
    what is kept after each of these numbers of steps, while it trains on."""
    set_seed(seed)
    data = TrainingData(make(), accumulation, seed, limit)
    steps, epoch, batch, now, at_start, found = [], 0, 0, None, {}, {}
    if kept is not None:
        epoch, batch, now, at_start = kept.epoch, kept.batch, kept.now, kept.at_start
        data.seed = 0
        assert data.restore(unpack(json.loads(kept.state), kept.tensors)) == []
    while epoch < epochs:
        if now is not None:
            set_random_state(at_start if batch else now, CPU)
        at_start = at_start if batch else random_state(CPU)
        windows = data.windows(epoch, batch, partial(set_random_state, now, CPU) if batch else lambda: None)
        now = None
        for window in windows:
            batches = [torch.as_tensor(loaded).tolist() for _, loaded in window.batches]
            assert len(batches) == window.size
            steps.append((batches, torch.rand(()).item(), random.random(), float(np.random.rand())))
            batch += window.size
            if len(steps) == until or len(steps) in keep:
                state, tensors = pack(data.state())
                place = (epoch + 1, 0) if window.is_last else (epoch, batch)
                found[len(steps)] = Kept(*place, json.dumps(state), tensors, random_state(CPU), at_start)
                if len(steps) == until:
                    return steps, found[until]
        epoch, batch = epoch + 1, 0
    return steps, found


def assert_resumes_while_kept(make, accumulation, cuts):
    """As below, where the training from which states are kept trains on: half as many workers are started."""
    whole, kept = trained(make, accumulation=accumulation, keep=cuts)
    for until in cuts:
        after, _ = trained(make, accumulation=accumulation, kept=kept[until], seed=99)
        assert whole[:until] + after == whole, until


def assert_resumes(make, accumulation=1, cuts=None, epochs=2, limit=None):
    """After a cut at each step the rest is the rest, in a process with other seeds. To keep the states changes
    nothing."""
    whole, _ = trained(make, accumulation=accumulation, epochs=epochs, limit=limit)
    cuts = cuts or range(1, len(whole))
    again, kept = trained(make, accumulation=accumulation, epochs=epochs, keep=cuts, limit=limit)
    assert again == whole
    for until in cuts:
        after, _ = trained(make, accumulation=accumulation, epochs=epochs, kept=kept[until], seed=99, limit=limit)
        assert whole[:until] + after == whole, until


def noise():
    return 1e-6 * (int(torch.randint(1000, ())) + random.randrange(1000) + int(np.random.randint(1000)))


def mine(count):
    worker = get_worker_info()
    return range(count) if worker is None else range(worker.id, count, worker.num_workers)


class Noisy(Dataset):
    """Samples with noise from all process-wide generators."""

    def __init__(self, count=22):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return index + noise()


class AtOnce(Noisy):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


class Own(Noisy):
    """Noise from generators of its own."""

    def __init__(self, count=22):
        super().__init__(count)
        self.numpy = np.random.default_rng(np.random.randint(1000))
        self.legacy = np.random.RandomState(np.random.randint(1000))
        self.python = random.Random(random.random())
        self.torch = torch.Generator().manual_seed(int(torch.randint(1000, ())))

    def __getitem__(self, index):
        drawn = self.numpy.random() + self.legacy.rand() + self.python.random()
        return index + drawn + torch.rand((), generator=self.torch).item()


class Counting(Noisy):
    """A dataset that keeps a state: how often it was asked."""

    calls = 0

    def __getitem__(self, index):
        self.calls += 1
        return index + self.calls / 1000

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


class Mixing(IterableDataset):
    """A stream that mixes samples in a buffer, by draws from the process-wide generators."""

    def __init__(self, count=22):
        self.count = count

    def __iter__(self):
        waiting = []
        for index in mine(self.count):
            waiting.append(index)
            if len(waiting) > 4:
                yield waiting.pop(int(torch.randint(5, ()))) + noise()
        random.shuffle(waiting)
        yield from waiting


class Eager(Mixing):
    """Draws before the first sample is asked for."""

    def __iter__(self):
        order = list(mine(self.count))
        np.random.shuffle(order)
        return iter(order)


class Epochs(Mixing):
    """Its order follows from the epoch that it is told."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        order = list(mine(self.count))
        random.Random(self.epoch).shuffle(order)
        return (index + noise() for index in order)


class OwnStream(Own, IterableDataset):
    def __iter__(self):
        return (self[index] for index in mine(self.count))


class Places(Mixing):
    """A stream whose state is the place of the next sample; a pass is continued, and the next one starts again.

    `read` says which samples this process read.
    """

    def __init__(self, count=22):
        super().__init__(count)
        self.place = self.given = 0
        self.read = []

    def __iter__(self):
        indices = mine(self.count)
        while self.place < len(indices):
            self.place += 1
            self.given += 1
            self.read.append(indices[self.place - 1])
            yield self.read[-1] + self.given / 1000 + noise()
        self.place = 0

    def state_dict(self):
        return {"place": self.place, "given": self.given}

    def load_state_dict(self, state):
        self.place, self.given = state["place"], state["given"]


class StartsAt(Places):
    """Starts where it was told to, once; with the state of an end, it gives nothing."""

    start = 0

    def __iter__(self):
        indices, start, self.start = mine(self.count), self.start, 0
        for self.place in range(start, len(indices)):
            yield indices[self.place] + noise()

    def load_state_dict(self, state):
        self.start = state["place"] + 1


class Itself(Places):
    """A stream that is its own iterator."""

    def __iter__(self):
        self.place = 0
        return self

    def __next__(self):
        indices = mine(self.count)
        if self.place == len(indices):
            raise StopIteration
        self.place += 1
        return indices[self.place - 1] + noise()


class OfIterators(Mixing):
    """A stream whose iterators keep the state."""

    def __iter__(self):
        return iter(Itself(self.count))


class Endless(Places):
    """An epoch goes on where the last one ended."""

    def __iter__(self):
        while True:
            self.place += 1
            yield self.place + noise()


class Forgetful(Places):
    """Keeps no state."""

    state_dict = load_state_dict = property()


class Sized:
    def __len__(self):
        return self.count


def sized(kind, count):
    return type(f"Sized{kind.__name__}", (Sized, kind), {})(count)


class Drawing(Sampler):
    """Draws for every index from the process-wide generators, from what is left."""

    def __init__(self, count=22):
        self.count = count
        self.numpy = np.random.default_rng(np.random.randint(1000))

    def __iter__(self):
        left = list(range(self.count))
        while left:
            yield left.pop(int(torch.randint(len(left), ())) if random.random() < 0.5 else np.random.randint(len(left)))

    def __len__(self):
        return self.count


class Shrinking(Drawing):
    """Draws for every index from a generator of its own."""

    def __iter__(self):
        left = list(range(self.count))
        while left:
            yield left.pop(self.numpy.integers(len(left)))


class Remembering(Drawing):
    """Keeps a state: which of its epochs this is. At the end of one it begins again by itself."""

    passes = place = 0
    start = None

    def __iter__(self):
        start, self.start = self.start or 0, None
        self.passes += start == 0
        order = random.Random(self.passes).sample(range(self.count), self.count)
        for place in range(start + 1, self.count + 1):
            self.place = place
            yield order[place - 1]

    def state_dict(self):
        return {"passes": self.passes, "place": self.place}

    def load_state_dict(self, state):
        self.passes, self.place = state["passes"], state["place"]
        self.start = state["place"] if state["place"] < self.count else None


class EndsFirst(Remembering):
    """One that is at its end until it was asked for more."""

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.start = state["place"]


class Batches:
    """A batch sampler without a length, which draws."""

    def __iter__(self):
        order = torch.randperm(22).tolist()
        return (order[start : start + 4] for start in range(0, 22, 4))


def masked(samples):
    """A function that makes batches and draws."""
    batch = default_collate(samples)
    return torch.where(torch.rand(batch.shape) < 0.2, -1, batch)


class OwnMask:
    """One that draws from its own generator."""

    def __init__(self):
        self.torch = torch.Generator().manual_seed(int(torch.randint(1000, ())))

    def __call__(self, samples):
        batch = default_collate(samples)
        return torch.where(torch.rand(batch.shape, generator=self.torch) < 0.2, -1, batch)


def plain(dataset, workers=0, kind=DataLoader, **given):
    size = {} if "batch_sampler" in given else {"batch_size": 4}
    if not isinstance(dataset, IterableDataset) and not {"sampler", "batch_sampler"} & given.keys():
        size["shuffle"] = True
    return kind(dataset, num_workers=workers, **{**size, **given})


def of_torchdata(dataset, workers=0, **given):
    library = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")
    return plain(dataset, workers, library.StatefulDataLoader, **given)


LOADERS = {
    "all indices at once": lambda workers: plain(AtOnce(), workers),
    "a part, and batches that draw": lambda workers: plain(Subset(Noisy(), range(3, 22)), workers, collate_fn=masked),
    "each sample is a batch": lambda workers: plain(Noisy(9), workers, batch_size=None),
    "a sampler that draws": lambda workers: plain(Noisy(), workers, sampler=Drawing()),
    "a sampler that draws from its own": lambda workers: plain(Noisy(), workers, sampler=Shrinking()),
    "a sampler with a state": lambda workers: plain(Noisy(), workers, sampler=Remembering()),
    "a sampler that ends first": lambda workers: plain(Noisy(), workers, sampler=EndsFirst()),
    "batches of unknown number": lambda workers: plain(Noisy(), workers, batch_sampler=Batches(), collate_fn=masked),
    "a stream that mixes": lambda workers: plain(Mixing(), workers, collate_fn=masked),
    "a stream with a length": lambda workers: plain(sized(Mixing, 24), workers),
    "a stream that draws first": lambda workers: plain(Eager(), workers),
    "a stream that is told epochs": lambda workers: plain(Epochs(), workers),
    "a stream with its own generators": lambda workers: plain(OwnStream(), workers),
    "a stream with a state": lambda workers: plain(Places(), workers),
    "torchdata": lambda workers: of_torchdata(Noisy(), workers, collate_fn=masked, snapshot_every_n_steps=3),
    "torchdata, dataset with a state": lambda workers: of_torchdata(Counting(), workers),
    "torchdata, sampler that draws": lambda workers: of_torchdata(Noisy(), workers, sampler=Drawing()),
    "torchdata, sampler with its own generator": lambda workers: of_torchdata(Noisy(), workers, sampler=Shrinking()),
    "torchdata, sampler with a state": lambda workers: of_torchdata(Counting(), workers, sampler=EndsFirst()),
    "torchdata, stream that mixes": lambda workers: of_torchdata(Mixing(), workers, collate_fn=masked),
    "torchdata, stream that draws first": lambda workers: of_torchdata(Eager(), workers),
    "torchdata, stream that is told epochs": lambda workers: of_torchdata(Epochs(), workers),
    "torchdata, stream with a state": lambda workers: of_torchdata(Places(), workers, collate_fn=masked),
    "torchdata, stream that starts at": lambda workers: of_torchdata(StartsAt(), workers),
    "torchdata, stream that is its iterator": lambda workers: of_torchdata(Itself(), workers),
    "torchdata, iterators with a state": lambda workers: of_torchdata(OfIterators(), workers),
    "torchdata, stream with a length": lambda workers: of_torchdata(sized(Places, 24), workers),
}
IN_ONE_PROCESS = {
    "own generators": lambda: plain(Own()),
    "own generators, unknown number": lambda: plain(Own(), batch_sampler=Batches(), collate_fn=OwnMask()),
    "own generator of a function": lambda: plain(Mixing(), collate_fn=OwnMask()),
    "own generator of a function, and a state": lambda: plain(Places(), collate_fn=OwnMask()),
    "a dataset with a state": lambda: plain(Counting()),
    "a dataset with a state, unknown number": lambda: plain(Counting(), batch_sampler=Batches()),
    "starts at": lambda: plain(StartsAt()),
    "is its own iterator": lambda: plain(Itself()),
    "iterators with a state": lambda: plain(OfIterators()),
    "with a state and a length that fills no batch": lambda: plain(sized(Places, 22)),
    "starts at, with a length": lambda: plain(sized(StartsAt, 24)),
    "endless": lambda: plain(sized(Endless, 24)),
    "torchdata, endless": lambda: of_torchdata(sized(Endless, 24)),
}
PERSISTENT = {
    "a stream that mixes": lambda: plain(Mixing(), 2, persistent_workers=True),
    "a stream that is told epochs": lambda: plain(Epochs(), 2, persistent_workers=True),
    "plain": lambda: plain(Noisy(), 2, persistent_workers=True, collate_fn=masked),
    "torchdata, dataset with a state": lambda: of_torchdata(Counting(), 2, persistent_workers=True),
    "torchdata, stream with a state": lambda: of_torchdata(Places(), 2, persistent_workers=True),
    "torchdata, stream that is told epochs": lambda: of_torchdata(Epochs(), 2, persistent_workers=True),
}


@pytest.mark.parametrize("name", LOADERS)
def test_cut_anywhere(name):
    assert_resumes(partial(LOADERS[name], 0), epochs=3)


@pytest.mark.parametrize("name", IN_ONE_PROCESS)
def test_cut_anywhere_without_workers(name):
    assert_resumes(IN_ONE_PROCESS[name], epochs=3)


@pytest.mark.parametrize("name", [*LOADERS, *IN_ONE_PROCESS])
def test_cut_between_accumulation_windows(name):
    make = partial(LOADERS[name], 0) if name in LOADERS else IN_ONE_PROCESS[name]
    assert_resumes(make, 4, cuts=(1, 2))


@pytest.mark.parametrize("name", LOADERS)
def test_cut_with_two_workers(name):
    assert_resumes_while_kept(partial(LOADERS[name], 2), 2, cuts=(4,))


ALL = {**{name: partial(make, 0) for name, make in LOADERS.items()}, **IN_ONE_PROCESS}


@pytest.mark.parametrize("name", ALL)
def test_epochs_of_two_batches(name):
    """Exact within the first; also later, unless `outruns_epochs` says that it may not be."""
    ahead = TrainingData(ALL[name](), 1, 7, 2).outruns_epochs
    assert_resumes(ALL[name], cuts=(1,) if ahead else (1, 2, 3), limit=2)


@pytest.mark.parametrize("name", PERSISTENT)
def test_cut_with_workers_that_outlive_epochs(name):
    assert_resumes(PERSISTENT[name], cuts=(4, 6))


def test_cut_where_one_of_the_workers_has_read_its_part():
    """The first has two samples, the second ten: what they draw does not depend on which of them was asked again."""
    assert_resumes(lambda: of_torchdata(Uneven(), 2, batch_size=1, collate_fn=masked), cuts=(6, 9), epochs=1)


class Uneven(Places):
    def __iter__(self):
        worker = get_worker_info()
        while self.place < (2 if worker.id == 0 else 10):
            self.place += 1
            yield 100 * worker.id + self.place + noise()


@pytest.mark.parametrize(
    ("kind", "make", "expected"),
    [(Places, plain, [8, 9]), (Places, of_torchdata, [8, 9]), (Forgetful, plain, [0, 1])],
)
def test_what_keeps_a_state_is_not_read_again(kind, make, expected):
    """Also where one batch more was read than trained on."""
    _, kept = trained(lambda: make(kind()), until=2)
    dataset = kind()
    trained(lambda: make(dataset), kept=kept, epochs=1)
    assert dataset.read[:2] == expected
    assert dataset.read[-1] == 21


@pytest.mark.parametrize("make", [plain, of_torchdata])
def test_an_endless_stream_loses_nothing_between_epochs(make):
    """Its length says where an epoch ends, and the next one goes on with the next sample."""
    steps, _ = trained(lambda: make(sized(Endless, 24)), epochs=3)
    assert [int(value) for batches, *_ in steps for batch in batches for value in batch] == list(range(1, 73))


class BufferShuffledExamplesIterable:
    def __init__(self, inner):
        self.ex_iterable = inner


class OfHuggingFace(Places):
    """A dataset as those of Hugging Face are, the innermost part last."""

    def __init__(self, *parts):
        super().__init__()
        self._ex_iterable = SimpleNamespace(ex_iterables=[SimpleNamespace(ex_iterable=None), *parts])


OfHuggingFace.__module__ = "datasets.iterable_dataset"


@pytest.mark.parametrize(
    ("parts", "expected"), [((), 8), ((SimpleNamespace(ex_iterable=BufferShuffledExamplesIterable(None)),), 0)]
)
def test_shuffled_streams_of_hugging_face_are_read_again(parts, expected):
    """Their states do not hold the buffer that samples wait in."""
    _, kept = trained(lambda: plain(OfHuggingFace(*parts)), until=2)
    dataset = OfHuggingFace(*parts)
    trained(lambda: plain(dataset), kept=kept, epochs=1)
    assert dataset.read[0] == expected


def processes(monkeypatch, count, process):
    state = SimpleNamespace(device=CPU, num_processes=count, process_index=process)
    monkeypatch.setattr("accmt.data.loaders.PartialState", lambda: state)


SHARED = {
    "stream": lambda: plain(Mixing()),
    "stream with a state": lambda: plain(Places(), collate_fn=masked),
    "stream of workers": lambda: plain(Mixing(), 1),
    "torchdata, stream of workers": lambda: of_torchdata(Places(), 1),
    "torchdata, map": lambda: of_torchdata(Counting()),
    "map": lambda: plain(Noisy(), 1, sampler=Drawing()),
    "each sample is a batch": lambda: plain(Noisy(9), batch_size=None),
}


@pytest.mark.parametrize("process", [0, 1])
@pytest.mark.parametrize("name", SHARED)
def test_shares_of_two_processes(monkeypatch, name, process):
    processes(monkeypatch, 2, process)
    assert_resumes(SHARED[name], cuts=(1, 3, 4))


class Counted(IterableDataset):
    def __init__(self, count, sized=False):
        self.count, self.sized = count, sized

    def __iter__(self):
        return iter(range(self.count))

    def __len__(self):
        if not self.sized:
            raise TypeError
        return self.count


def samples(make, **given):
    steps, _ = trained(make, epochs=1, **given)
    return [batch for step in steps for batch in step[0]]


@pytest.mark.parametrize(
    ("count", "drop_last", "first", "second"),
    [
        (16, False, [[0, 1, 2, 3], [8, 9, 10, 11]], [[4, 5, 6, 7], [12, 13, 14, 15]]),
        (10, False, [[0, 1, 2, 3], [8, 9, 8, 9]], [[4, 5, 6, 7], [8, 9, 8, 9]]),
        (10, True, [[0, 1, 2, 3]], [[4, 5, 6, 7]]),
        (3, False, [[0, 1, 2, 0]], [[1, 2, 0, 1]]),
    ],
)
@pytest.mark.parametrize("sized", [False, True])
def test_processes_share_a_stream(monkeypatch, count, drop_last, first, second, sized):
    """Every group of batches is shared out; all get equally many."""
    for process, expected in enumerate((first, second)):
        processes(monkeypatch, 2, process)
        make = partial(plain, Counted(count, sized), drop_last=drop_last)
        assert samples(make) == expected
        assert TrainingData(make(), 1, 0).batches_per_epoch == (len(expected) if sized else None)


def test_noise_of_workers_is_that_of_one_process(monkeypatch):
    """It follows from the number of the batch, whoever loads it."""
    whole = samples(lambda: plain(Noisy(24), 1))
    shares = []
    for process in (0, 1):
        processes(monkeypatch, 2, process)
        shares.append(samples(lambda: plain(Noisy(24), 2)))
    assert [batch for pair in zip(*shares, strict=True) for batch in pair] == whole


def test_more_or_fewer_workers_give_the_same():
    for make in (Noisy, AtOnce):
        whole = samples(lambda make=make: plain(make(), 1, collate_fn=masked))
        assert samples(lambda make=make: plain(make(), 2, collate_fn=masked)) == whole
        _, kept = trained(lambda make=make: plain(make(), 2, collate_fn=masked), until=2)
        rest, _ = trained(lambda make=make: plain(make(), 1, collate_fn=masked), kept=kept, epochs=1, seed=5)
        assert [batch for step in rest for batch in step[0]] == whole[2:]


def test_each_batch_has_its_own_noise():
    """In no epoch, batch or worker it is that of another."""
    steps, _ = trained(lambda: plain(Noisy(40), 2), epochs=3)
    drawn = [round(value % 1, 9) for batches, *_ in steps for batch in batches for value in batch]
    assert len(set(drawn)) > 110  # of 120 draws from some 3000 values


def test_workers_that_are_not_forked():
    """A worker that shares nothing with this process seeds its generators alike."""
    forked = samples(lambda: plain(Noisy(6), 1))
    assert samples(lambda: plain(Noisy(6), 1, multiprocessing_context="forkserver")) == forked


def begin_at_ten(worker):
    get_worker_info().dataset.start = 10


@pytest.mark.parametrize("make", [plain, partial(plain, persistent_workers=True), of_torchdata])
def test_workers_find_their_dataset(make):
    """Its attributes can be set where a worker begins, whatever reads it."""
    steps = samples(lambda: make(StartsAt(), 1, worker_init_fn=begin_at_ten))
    assert [int(value) for batch in steps for value in batch] == list(range(10, 22))


@pytest.mark.parametrize("name", ["a stream that mixes", "a stream that draws first", "a sampler that draws"])
@pytest.mark.parametrize("workers", [0, 1])
def test_what_data_draw_by_themselves_moves_no_generator_of_the_process(name, workers):
    """Those that a stream and a sampler draw from are not those that the model draws from."""
    if name == "a sampler that draws":
        data = TrainingData(plain(range(22), workers, sampler=Drawing()), 1, 7)
    else:
        data = TrainingData(LOADERS[name](workers), 1, 7)
    before = {key: value.clone() for key, value in random_state(CPU).items()}
    for _ in range(2):
        for window in data.windows(0):
            list(window.batches)
    assert all(torch.equal(value, before[key]) for key, value in random_state(CPU).items())

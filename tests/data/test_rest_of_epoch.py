"""The rest of an epoch by other batches on other processes: every sample once."""

from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler

from accmt.checkpoint.stateful import Mismatch
from accmt.data import loaders as data_of_loop
from accmt.data.loaders import TrainingData
from accmt.loop.progress import TrainingPosition

COUNT = 48


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(COUNT))


class Sized(Stream):
    def __len__(self):
        return COUNT


class Own(BatchSampler):
    """A batch sampler of another class."""


def batches_of(size):
    sampler = RandomSampler(range(COUNT), generator=torch.Generator())
    return DataLoader(range(COUNT), batch_sampler=Own(sampler, size, False))


LOADERS = {
    "shuffled": lambda size: DataLoader(range(COUNT), size, shuffle=True, generator=torch.Generator()),
    "drops": lambda size: DataLoader(range(COUNT), size, drop_last=True),
    "stream": lambda size: DataLoader(Stream(), size),
    "sized stream": lambda size: DataLoader(Sized(), size),
}


@pytest.fixture
def processes(monkeypatch):
    """The training data and the position of each of several processes, which are all this one."""

    def make(loader, size, count):
        for rank in range(count):
            state = SimpleNamespace(num_processes=count, process_index=rank, device=torch.device("cpu"))
            monkeypatch.setattr(data_of_loop, "PartialState", lambda state=state: state)
            data = TrainingData(loader(size), 1, 7)
            yield data, TrainingPosition(data, 1, None)

    return make


def trained(pairs, steps=None):
    """The samples of all processes by now, and where they are."""
    seen, places = [], []
    for data, position in pairs:
        for window in data.windows(position.epoch, position.batch, offset=position.offset):
            if position.step == steps:
                break
            seen += chain.from_iterable(batch.tolist() for _, batch in window.batches)
            position.advance(window)
        places.append(position.state_dict()["position"])
    assert all(place == places[0] for place in places)
    return seen, places[0]


def continued(pairs, place):
    for data, position in pairs:
        position.restore(place)
        yield data, position


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize(
    ("before", "steps", "now"),
    [((4, 1), 3, (3, 2)), ((4, 2), 3, (2, 3)), ((3, 2), 3, (5, 1)), ((6, 1), 1, (1, 3)), ((2, 3), 2, (4, 3))],
)
def test_every_sample_once(processes, kind, before, steps, now):
    seen, place = trained(processes(LOADERS[kind], *before), steps)
    assert place["place"] == len(seen) == before[0] * before[1] * steps
    rest, end = trained(continued(processes(LOADERS[kind], *now), place))
    left, batches = COUNT - len(seen), now[0] * now[1]
    if kind == "drops":
        assert len(rest) == len(set(rest) - set(seen)) == left // batches * batches
    else:  # a last round is filled up from what the training was continued with
        assert set(rest) == set(range(COUNT)) - set(seen)
        assert left <= len(rest) < left + batches
    assert (end["epoch"], end["place"]) == (1, 0)


@pytest.mark.parametrize(("before", "now"), [(2, 3), (3, 2), (1, 2)])
def test_whole_batches_where_the_user_makes_them(processes, before, now):
    seen, place = trained(processes(batches_of, 4, before), 1)
    rest, _ = trained(continued(processes(batches_of, 4, now), place))
    left = 12 - before
    assert set(seen + rest) == set(range(COUNT))
    assert len(rest) == -(-left // now) * now * 4
    with pytest.raises(Mismatch, match="batches of 4 on"):
        list(continued(processes(batches_of, 3, now), place))

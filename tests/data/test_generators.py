"""Random generators that objects keep for themselves; and what cannot go on exactly is said, once, and only then."""

import json
import random
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from accmt import AcceleratorModule
from accmt.checkpoint.serialization import pack, unpack
from accmt.data.generators import Generators, generators_of, inexact

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
PREFIX = "a training that is resumed within an epoch may not match an uninterrupted one exactly: "
ADVICE = (
    "in workers is not saved in checkpoints "
    "(draw from torch, numpy.random or random instead: they are seeded for every batch)"
)


class Samples(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return index


class Own(Samples):
    def __init__(self, generator=None):
        self.random = random.Random(1) if generator is None else generator


class Keeping(Samples):
    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Told(Samples):
    def set_epoch(self, epoch):
        pass


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(8))


class OwnStream(Own, Stream):
    pass


class KeepingStream(Keeping, Stream):
    pass


@dataclass(slots=True)
class Mask:
    generator: torch.Generator

    def __call__(self, samples):
        return default_collate(samples)


def of_torchdata(*arguments, **given):
    library = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")
    return library.StatefulDataLoader(*arguments, **given)


persistent = {"num_workers": 1, "persistent_workers": True}
INEXACT = {
    "generator in a worker": (lambda: DataLoader(Own(), num_workers=1), f"the random state of dataset.random {ADVICE}"),
    "below wrappers": (
        lambda: DataLoader(Subset(ConcatDataset([Samples(), Own()]), [0, 9]), num_workers=1),
        f"the random state of dataset.dataset.datasets.1.random {ADVICE}",
    ),
    "of a function": (
        lambda: DataLoader(Samples(), num_workers=1, collate_fn=Mask(torch.Generator())),
        f"the random state of collate_fn.generator {ADVICE}",
    ),
    "of a function of torchdata's": (
        lambda: of_torchdata(KeepingStream(), num_workers=1, collate_fn=Mask(torch.Generator())),
        f"the random state of collate_fn.generator {ADVICE}",
    ),
    "that outlives epochs": (
        lambda: DataLoader(OwnStream(), **persistent),
        f"the random state of dataset.random {ADVICE}",
    ),
    "of the operating system": (
        lambda: DataLoader(Own(random.SystemRandom())),
        "dataset.random draws random numbers from the operating system",
    ),
    "state in a worker": (
        lambda: DataLoader(Keeping(), num_workers=1),
        "the state of Keeping in workers is not saved in checkpoints (only a StatefulDataLoader can save it)",
    ),
    "epochs that are not heard of": (
        lambda: DataLoader(Told(), **persistent),
        "persistent_workers do not receive the epochs that are passed to Told.set_epoch",
    ),
    "order of workers": (
        lambda: DataLoader(Samples(), num_workers=2, in_order=False),
        "in_order=False takes batches in the order in which workers happen to finish them",
    ),
    "two reasons": (
        lambda: DataLoader(Own(), num_workers=2, in_order=False),
        f"the random state of dataset.random {ADVICE}; "
        "in_order=False takes batches in the order in which workers happen to finish them",
    ),
}
EXACT = {
    "no workers": lambda: DataLoader(Own(), shuffle=True, collate_fn=Mask(torch.Generator())),
    "workers": lambda: DataLoader(TensorDataset(torch.zeros(8)), num_workers=2, shuffle=True),
    "a worker that seeds": lambda: DataLoader(Samples(), num_workers=1, worker_init_fn=lambda worker: None),
    "weights": lambda: DataLoader(
        Samples(), sampler=WeightedRandomSampler([1.0] * 8, 8, generator=torch.Generator()), num_workers=1
    ),
    "a sampler that draws": lambda: DataLoader(Samples(), sampler=SimpleNamespace(rng=random.Random())),
    "workers that outlive epochs": lambda: DataLoader(Samples(), **persistent),
    "a stream": lambda: DataLoader(Stream(), num_workers=2),
    "a stream that outlives epochs": lambda: DataLoader(Stream(), **persistent),
    "a stream that is told epochs": lambda: DataLoader(type("Epochs", (Told, Stream), {})(), **persistent),
    "a stream with a generator": lambda: DataLoader(OwnStream(), num_workers=1, collate_fn=Mask(torch.Generator())),
    "torchdata": lambda: of_torchdata(Keeping(), num_workers=1, shuffle=True),
    "torchdata, stream": lambda: of_torchdata(KeepingStream(), **persistent),
    "samples that are generators": lambda: DataLoader([random.Random(1)] * 8, num_workers=1),
}


@pytest.mark.parametrize("name", INEXACT)
def test_what_cannot_be_exact_is_named(name):
    make, expected = INEXACT[name]
    assert inexact(make()) == [PREFIX + expected]


@pytest.mark.parametrize("name", EXACT)
def test_ordinary_data_are_no_reason_to_warn(name):
    assert inexact(EXACT[name]()) == []


@pytest.mark.parametrize(("enabled", "count"), [(True, 1), (False, 0)])
def test_it_is_said_once_before_the_first_step(trainer, regression, data, capsys, enabled, count):
    class OfData(Own):
        def __init__(self):
            super().__init__()
            self.dataset = data(8)

        def __getitem__(self, index):
            return self.dataset[index]

    trainer(enable_checkpointing=enabled, dataloader_num_workers=1).fit(regression(), OfData())
    text = " ".join(capsys.readouterr().out.split())
    assert text.count(PREFIX + f"the random state of dataset.random {ADVICE}") == count


def draws(holder):
    return (
        holder.numpy.random(),
        holder.numpy.integers(100, dtype=np.uint32),
        holder.legacy.standard_normal(),
        holder.python.gauss(0, 1),
        torch.rand((), generator=holder.torch).item(),
    )


def holder(seed):
    return SimpleNamespace(
        numpy=np.random.default_rng(seed),
        legacy=np.random.RandomState(seed),
        python=random.Random(seed),
        torch=torch.Generator().manual_seed(seed),
    )


def kept(states):
    packed, tensors = pack(states)
    return unpack(json.loads(json.dumps(packed)), tensors)


@pytest.mark.parametrize("bits", [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64])
def test_states_of_all_kinds_go_through_a_checkpoint(bits):
    one, other = holder(1), holder(2)
    one.numpy, other.numpy = np.random.Generator(bits(1)), np.random.Generator(bits(2))
    draws(one)
    states = kept(Generators({"one": one}).states())
    assert list(states) == ["one.numpy", "one.legacy", "one.python", "one.torch"]
    expected = [draws(one) for _ in range(3)]
    Generators({"one": other}).restore(states)
    assert [draws(other) for _ in range(3)] == expected


def test_generators_are_found_once_wherever_they_are():
    shared = random.Random(1)
    method = Own(shared).__getitem__
    found = dict(
        Generators(
            {
                "first": Subset(Own(shared), [0]),
                "second": method,
                "third": partial(Mask, Mask(torch.Generator()), generator=Own(np.random.default_rng())),
                "fourth": SimpleNamespace(transforms={"one": Own()}, other=Own(), none=None),
            }
        )
    )
    assert list(found) == [
        "first.dataset.random",
        "third.0.generator",
        "third.generator.random",
        "fourth.transforms.one.random",
    ]


def test_those_that_are_made_late_are_found_too():
    late = SimpleNamespace(random=None)
    generators = Generators({"late": late})
    assert generators.states() == {}
    late.random = random.Random(1)
    assert list(generators.states()) == ["late.random"]


def test_one_root_can_be_left_out():
    one, other = random.Random(1), random.Random(2)
    generators = Generators({"a": Own(one), "b": Own(other)})
    states = generators.states()
    first, second = one.random(), other.random()
    generators.restore(states, but="a")
    assert one.random() != first
    assert other.random() == second


def test_generators_of_module_layers_and_validation_data():
    class Noise(nn.Module):
        def __init__(self):
            super().__init__()
            self.generator = torch.Generator()

    class Module(AcceleratorModule):
        def __init__(self):
            self.model = nn.Sequential(nn.Linear(1, 1), Noise())
            self.random = random.Random(1)

    module = Module()
    loader = DataLoader(
        Own(), generator=torch.Generator(), sampler=RandomSampler(range(8), generator=torch.Generator())
    )
    found = dict(generators_of(module, module.model, {"dev": loader}))
    assert list(found) == [
        "module.random",
        "model.1.generator",
        "loader of 'dev'.dataset.random",
        "loader of 'dev'.sampler.generator",
        "loader of 'dev'.generator",
    ]

"""A checkpoint knows the data that it was trained on, without disturbing them or anything that is drawn at random."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

from accmt import ConfigError
from accmt.data.identity import difference, identify_dataset

CPU = torch.device("cpu")


class Texts(Dataset):
    """Samples of every kind of plain data; opens its file late, as those that workers read do."""

    def __init__(self, count=20, first=0):
        self.count, self.first, self.file, self.reads = count, first, None, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.file = "open"
        self.reads += 1
        number = self.first + index
        return {"text": f"number {number}", "labels": [number, (None, 0.5)], "array": np.arange(number, number + 3)}


class Noisy(Dataset):
    def __init__(self, draw):
        self.draw = draw

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return self.draw()


class Stream(IterableDataset):
    def __iter__(self):
        raise AssertionError("a stream is not read")


def tensors(first=0, count=20):
    return TensorDataset(torch.arange(first, first + count, dtype=torch.bfloat16))


def known(dataset):
    return identify_dataset(dataset, CPU)


@pytest.mark.parametrize("make", [Texts, tensors, lambda: ConcatDataset([Texts(), Texts(5, 3)]), lambda: list("abc")])
def test_the_same_data_again(make):
    assert known(make())["samples"] is not None
    assert difference(known(make()), known(make())) == ""


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        (tensors(), tensors(count=21), "20 samples then and 21 now"),
        (tensors(), tensors(first=1), "the same number of samples, but different ones"),
        (Texts(), Texts(first=1), "the same number of samples, but different ones"),
        (Texts(), ConcatDataset([Texts()]), "a tests.loop.test_identity.Texts then"),
        (
            ConcatDataset([Texts(), Texts()]),
            ConcatDataset([Texts(), Texts(first=7)]),
            "the same number of samples, but different ones",
        ),
    ],
)
def test_other_data(then, now, said):
    assert said.removeprefix("a tests.loop.") in difference(known(then), known(now))


def test_folds_of_any_number_are_told_apart():
    whole = tensors(count=128)
    for folds in (2, 5, 64):
        size = 128 // folds
        seen = []
        for fold in range(folds):
            left_out = range(fold * size, (fold + 1) * size)
            seen.append(known(Subset(whole, [index for index in range(128) if index not in left_out])))
        assert len({entry["samples"] for entry in seen}) == folds


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.randn(2),
        lambda: random.random() < 1e-9,
        lambda: float(np.random.rand() < 1e-9),
        lambda: random.SystemRandom().random(),
        lambda: object(),
        lambda: {1, 2},
        lambda: 1 / 0,
    ],
)
def test_what_is_not_the_same_again_is_known_by_its_length(draw):
    assert known(Noisy(draw)) == {"type": known(Noisy(draw))["type"], "length": 20, "samples": None}
    assert difference(known(Noisy(draw)), known(Noisy(lambda: 1))) == ""


def test_a_stream_is_not_read():
    assert (known(Stream())["length"], known(Stream())["samples"]) == (None, None)


def test_nothing_is_disturbed():
    own = torch.Generator().manual_seed(5)
    noisy = Noisy(lambda: torch.randn(1) + random.random() + np.random.rand())
    noisy.generator = own
    drawing = Noisy(lambda: torch.randn(1, generator=own))
    drawing.generator = own
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state(), own.get_state()
    texts = Texts()
    for dataset in (noisy, drawing, texts, Subset(texts, [3, 4])):
        known(dataset)
    assert known(drawing)["samples"] is None
    assert (texts.file, texts.reads) == (None, 0)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert torch.equal(own.get_state(), before[3])


@pytest.fixture
def folds(trainer, regression, data):
    """Seeds of data -> the steps that a training makes on them in one folder, one after the other."""

    def run(seed, epochs=2, **arguments):
        steps = []

        class Counting(regression):
            def training_step(self, batch):
                steps.append(1)
                return super().training_step(batch)

        trainer(epochs=epochs, **arguments).fit(Counting(), data(8, seed))
        return len(steps)

    return run


def test_a_finished_training_on_other_data_is_refused(folds, capsys):
    assert folds(1) == 4
    assert folds(1) == 0
    with pytest.raises(ConfigError) as caught:
        folds(2)
    assert str(caught.value).split("\n  ")[1] == (
        "model_path: contains a finished training on other data (the same number of samples, but different ones): "
        "nothing would be trained. Give another model_path to train on these, resume=False to start from scratch here, "
        "or resume=True (or more epochs) to continue that training anyway"
    )
    assert folds(1, epochs=3) == 2
    capsys.readouterr()
    assert folds(2, resume=True) == 0
    assert "the training data are not those of the checkpoint: the same number of samples" in _text(capsys)
    assert folds(2, epochs=4) == 2
    assert "the training data are not those of the checkpoint: the same number of samples" in _text(capsys)
    assert folds(2, epochs=4) == 0
    assert folds(3, resume=False) == 4


def test_a_stopped_training_on_other_data_is_refused(folds):
    assert folds(1, epochs=5, stop_when="epoch >= 1") == 2
    with pytest.raises(ConfigError, match="contains a finished training on other data"):
        folds(2, epochs=5, stop_when="epoch >= 1")
    assert folds(1, epochs=5, stop_when="epoch >= 2") == 2


def _text(capsys):
    return " ".join(capsys.readouterr().out.split())

"""The description of a batch: its structure, keys, types, dtypes and shapes, in one line of bounded length."""

from collections import namedtuple

import numpy as np
import pytest
import torch

from accmt.data.description import describe_batch

Pair = namedtuple("Pair", "first second")


class Sparse:
    pass


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        (torch.zeros(2, 3), "float32 (2, 3)"),
        (torch.zeros(()), "float32 ()"),
        ([torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)], "[float32 (2, 3), int64 (2,)]"),
        (Pair(torch.zeros(2), None), "(float32 (2,), NoneType)"),
        (
            {"ids": torch.zeros(2, 4, dtype=torch.int64), 7: ["a", "b"]},
            "{'ids': int64 (2, 4), 7: [str, str]}",
        ),
        (np.zeros((2, 2)), "float64 (2, 2)"),
        (torch.zeros(2, device="meta"), "float32 (2,) on meta"),
        ([[[[1, 2]]]], "[[[list]]]"),
        (list(range(9)), "[int, int, int, int, int, int, 3 more]"),
        (Sparse(), "Sparse"),
        ([], "[]"),
    ],
)
def test_descriptions(batch, text):
    assert describe_batch(batch) == text


def test_it_is_short_and_steers_no_terminal():
    text = describe_batch({f"key\x1b[2J{'x' * 300}{number}": torch.zeros(1) for number in range(5)})
    assert len(text) == 403
    assert text.endswith("...")
    assert "\x1b" not in text


@pytest.mark.parametrize("step", ["training_step", "validation_step"])
def test_an_error_of_a_step_describes_its_batch(trainer, regression, data, step):
    """The wrong shape of a batch is the usual reason."""

    class Wrong(regression):
        def training_step(self, batch):
            return self.model(batch[0] if step == "validation_step" else batch[0][:, :0]).mean()

        def validation_step(self, key, batch):
            return self.model(batch[0][:, :0]).mean()

    shape = tuple(next(iter(torch.utils.data.DataLoader(data(8), batch_size=4)))[0].shape[1:])
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        trainer(sanity_check=False).fit(Wrong(), data(8), data(8))
    note = caught.value.__notes__[1]
    assert note.startswith("its batch: [float32 (")
    assert f", {shape[0]})" in note


def test_a_batch_that_cannot_be_described_hides_no_error(trainer, regression, data):
    class Odd:
        @property
        def shape(self):
            raise RuntimeError("no shape")

    class Wrong(regression):
        def batch_size(self, batch):
            return 4

        def training_step(self, batch):
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        trainer(collate_fn=lambda samples: Odd()).fit(Wrong(), data(8))
    assert [note.partition(" ")[0] for note in caught.value.__notes__] == ["raised"]


def test_what_a_step_returned_is_not_blamed_on_its_batch(trainer, regression, data):
    class Wrong(regression):
        def training_step(self, batch):
            return None

    with pytest.raises(TypeError, match="must return a scalar tensor") as caught:
        trainer().fit(Wrong(), data(8))
    assert len(caught.value.__notes__) == 1

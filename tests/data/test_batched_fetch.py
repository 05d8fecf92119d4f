"""Batches cut out of data in memory are those that `default_collate` makes of their samples."""

import datasets as hf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, DataLoader, StackDataset, Subset, TensorDataset
from torch.utils.data._utils import collate

from accmt.data.batched_fetch import BatchedFetch, CutBatch
from accmt.data.in_memory import is_ready
from accmt.data.loader_copy import LoaderCopy
from accmt.data.loaders import TrainingData

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool]
ARRAY_DTYPES = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?"]
LAYOUTS = ["contiguous", "transposed", "channels_last", "expanded", "strided"]


@st.composite
def tensors(draw, rows):
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    tensor = (torch.randn(rows, *shape) * 50).to(draw(st.sampled_from(DTYPES)))
    layout = draw(st.sampled_from(LAYOUTS))
    if layout == "transposed" and tensor.ndim > 2:
        return tensor.transpose(1, 2)
    if layout == "channels_last" and tensor.ndim == 4:
        return tensor.to(memory_format=torch.channels_last)
    if layout == "expanded":
        return tensor[:1].expand_as(tensor)
    return torch.cat([tensor, tensor])[::2] if layout == "strided" else tensor


@st.composite
def arrays(draw, rows):
    shape = draw(st.lists(st.integers(1, 3), max_size=2))
    array = (np.random.default_rng(0).standard_normal((rows, *shape)) * 50).astype(draw(st.sampled_from(ARRAY_DTYPES)))
    return array[:, ::-1] if array.ndim == 2 and draw(st.booleans()) else array


@st.composite
def sets(draw, rows, depth=2):
    kinds = (
        ["tensors", "tensor", "array"]
        + ["subset", "tuple", "dict"] * (depth > 0)
        + ["concat"] * (depth > 0 and rows > 1)
    )
    kind = draw(st.sampled_from(kinds))
    if kind == "tensors":
        return TensorDataset(*draw(st.lists(tensors(rows), min_size=1, max_size=3)))
    if kind == "tensor":
        return draw(tensors(rows))
    if kind == "array":
        return draw(arrays(rows))
    if kind == "subset":
        inner = draw(sets(rows + 3, depth - 1))
        return Subset(inner, draw(st.lists(st.integers(0, rows + 2), min_size=rows, max_size=rows)))
    if kind == "concat":
        first = draw(st.integers(1, rows - 1))
        if draw(st.booleans()):
            whole = draw(sets(rows, depth - 1))
            return ConcatDataset([Subset(whole, range(first)), Subset(whole, range(first, rows))])
        return ConcatDataset([draw(sets(first, depth - 1)), draw(sets(rows - first, depth - 1))])
    if kind == "tuple":
        return StackDataset(*draw(st.lists(sets(rows, depth - 1), min_size=1, max_size=2)))
    return StackDataset(x=draw(sets(rows, depth - 1)), y=draw(sets(rows, depth - 1)))


def described(batch):
    """A batch as something to compare: types, dtypes, shapes, strides and bits."""
    if isinstance(batch, torch.Tensor):
        bits = batch.contiguous().flatten().view(torch.uint8).tolist() if batch.numel() else []
        return type(batch), batch.dtype, batch.shape, batch.stride(), batch.requires_grad, bits
    if isinstance(batch, dict):
        return type(batch), {name: described(value) for name, value in batch.items()}
    return (type(batch), [described(value) for value in batch]) if isinstance(batch, list | tuple) else batch


def read(loader):
    try:
        return [described(batch) for batch in loader]
    except Exception as error:
        return type(error)


def ours(loader):
    copy = LoaderCopy(loader)
    return (batch for _, batch in copy.sizes.beside(copy.begin(), None))


@settings(deadline=None)
@given(st.data())
def test_the_batches_are_those_of_the_plain_loader(data):
    rows = data.draw(st.integers(2, 9))
    dataset = data.draw(sets(rows))
    order = data.draw(st.lists(st.integers(-rows, rows - 1), min_size=1, max_size=12))
    if data.draw(st.booleans()):
        order = torch.tensor(order)  # its items are tensors
    loader = DataLoader(dataset, data.draw(st.integers(1, 5)), sampler=list(order), drop_last=data.draw(st.booleans()))
    expected, before = read(loader), torch.get_rng_state()
    assert read(ours(loader)) == expected
    assert torch.equal(torch.get_rng_state(), before)


FORMATS = ["torch", "numpy"]
COLUMNS = {
    "whole": [5, -3, 7, 0, 9, 11],
    "real": [0.5, -1.25, 1e30, 0.0, 3.0, -0.0],
    "flag": [True, False, True, True, False, False],
    "text": ["a", "b", "", "ü", "c", "d"],
    "row": [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10], [11, 12]],
    "grid": [[[1.0], [2.0]]] * 6,
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("columns", [[name] for name in COLUMNS] + [list(COLUMNS)], ids=lambda names: ",".join(names))
def test_a_table_is_read_by_columns(form, columns):
    table = hf.Dataset.from_dict({name: COLUMNS[name] for name in columns}).with_format(form)
    loader = DataLoader(table, 4, sampler=[3, 0, 5, 1, 1, 2])
    copy = LoaderCopy(loader)
    is_cut = form == "torch" or "text" not in columns
    assert isinstance(copy.loader.dataset, BatchedFetch) is is_ready(table, None) is is_cut
    assert read(ours(loader)) == read(loader)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "column",
    [
        [1, None, 3],
        [1.5, None, 2.5],
        [[1, 2], None, [3, 4]],
        [[1, None], [2, 3], [4, 5]],
        [[1], [1, 2], [3]],
        [None] * 3,
    ],
    ids=str,
)
def test_missing_and_ragged_values_fare_as_in_the_plain_loader(form, column):
    loader = DataLoader(hf.Dataset.from_dict({"x": column}).with_format(form), 3)
    assert not is_ready(loader.dataset, None)
    assert read(ours(loader)) == read(loader)


def test_images_are_decoded_by_workers():
    pytest.importorskip("PIL")
    images = {"x": [np.zeros((2, 2, 3), np.uint8)] * 3}
    table = hf.Dataset.from_dict(images, features=hf.Features({"x": hf.Image()})).with_format("torch")
    assert not is_ready(table, None)
    assert read(ours(DataLoader(table, 2))) == read(DataLoader(table, 2))


@pytest.mark.parametrize("form", [None, "pandas"])
def test_other_formats_are_read_row_by_row(form):
    loader = DataLoader(hf.Dataset.from_dict({"x": [1, 2, 3]}).with_format(form), 2)
    assert not isinstance(LoaderCopy(loader).loader.dataset, BatchedFetch)
    assert read(ours(loader)) == read(loader)


def test_a_batch_is_cut_from_the_tensors_of_the_moment():
    dataset = TensorDataset(torch.zeros(4, 1))
    loader = LoaderCopy(DataLoader(dataset, 4)).loader
    dataset.tensors = (torch.ones(4, 1),)
    assert next(iter(loader))[1][0].sum() == 4


def test_it_is_one_index_for_each_tensor():
    """The samples themselves are not read."""

    class Watched(torch.Tensor):
        pass

    dataset = TensorDataset(torch.arange(6.0))
    batch = BatchedFetch(dataset).__getitems__([5, 0])
    assert isinstance(batch, CutBatch)
    assert batch.batch[0].tolist() == [5.0, 0.0]
    other = BatchedFetch(TensorDataset(torch.arange(6.0).as_subclass(Watched))).__getitems__([5, 0])
    assert isinstance(other, list)


def test_indices_that_follow_each_other_give_copies():
    """What a step does to its batch does not change the data."""
    data = torch.arange(12.0).reshape(6, 2)
    fetch = BatchedFetch(TensorDataset(data))
    for indices in (range(2, 5), [2, 3, 4]):
        batch = fetch.__getitems__(indices)
        batch.batch[0].zero_()
    assert torch.equal(data, torch.arange(12.0).reshape(6, 2))
    for beyond in (range(4, 8), [4, 5, 6, 7]):
        with pytest.raises(IndexError):
            fetch.__getitems__(beyond)


@pytest.mark.parametrize("indices", [range(0, 6, 2), range(5, -1, -1), range(-3, 0), range(-2, 2)])
def test_ranges_of_any_kind_are_batches(indices):
    """As a batch sampler of the script may give them."""
    dataset = TensorDataset(torch.arange(6.0))
    [window] = TrainingData(DataLoader(dataset, batch_sampler=[indices]), 1, seed=7).windows(0)
    [(samples, [batch])] = window.batches
    assert samples == len(indices)
    assert batch.tolist() == [dataset[index][0].item() for index in indices]


def test_a_collation_that_the_script_extends_is_kept(monkeypatch):
    monkeypatch.setitem(collate.default_collate_fn_map, torch.Tensor, lambda batch, *, collate_fn_map=None: "mine")
    loader = DataLoader(TensorDataset(torch.zeros(4)), 4)
    assert not is_ready(loader.dataset, None)
    assert read(ours(loader)) == read(loader) == [(list, ["mine"])]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize(("skip", "offset"), [(0, 0), (2, 0), (1, 3)])
def test_drawn_batch_by_batch_they_are_those_drawn_index_by_index(shuffle, drop_last, skip, offset):
    def read(dataset):
        loader = DataLoader(dataset, 4, shuffle=shuffle, drop_last=drop_last)
        windows = TrainingData(loader, 1, seed=7).windows(1, skip, offset=offset)
        return [(samples, torch.as_tensor(batch).tolist()) for window in windows for samples, batch in window.batches]

    whole = torch.arange(23)
    assert isinstance(LoaderCopy(DataLoader(whole)).loader.dataset, BatchedFetch)
    assert read(whole) == read([*range(23)])  # whose samples are stacked one by one

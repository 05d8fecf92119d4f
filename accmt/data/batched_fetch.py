"""Batches of data in memory, cut out of their tensors by one index instead of being stacked from samples.

The batches are those of torch's `default_collate`, bit by bit. Whatever is not surely the same is fetched sample by
sample.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, StackDataset, Subset, TensorDataset, default_collate

from accmt._compat import collates_by_default
from accmt.data.table import is_table, is_whole_table, rows_of_table


class CutBatch(NamedTuple):
    """A complete batch, in the place of its samples."""

    samples: int
    batch: Any


class BatchedFetch(Dataset[Any]):
    """A dataset that returns whole batches where it can; all else is the dataset's.

    Args:
        dataset: A dataset in memory.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self._cuts = True

    def __getitems__(self, indices: Sequence[Any] | Tensor) -> CutBatch | list[Any]:
        if self._cuts and (type(indices) in (range, Tensor) or {*map(type, indices)} == {int}):
            try:
                size = indices.numel() if type(indices) is Tensor else len(indices)
                return CutBatch(size, _cut(self.dataset, indices))
            except _NotCut:
                self._cuts = False
            except (IndexError, OverflowError, RuntimeError):
                pass  # fetching the samples one by one says which index is wrong, or accepts it
        indices = indices.tolist() if type(indices) is Tensor else indices
        if hasattr(self.dataset, "__getitems__"):
            return self.dataset.__getitems__(list(indices))  # type: ignore[no-any-return]
        return [self.dataset[index] for index in indices]

    def __getitem__(self, index: Any) -> Any:
        return self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)


def fetch_batched(loader: DataLoader[Any]) -> None:
    """Let a loader fetch whole batches if its data are in memory and batched by torch's default."""
    if (
        loader.batch_sampler is not None
        and loader.collate_fn is default_collate
        and loader.worker_init_fn is None
        and can_be_cut(loader.dataset)
        and collates_by_default()
    ):
        vars(loader)["dataset"] = BatchedFetch(loader.dataset)


def can_be_cut(dataset: Any, *others: type) -> bool:
    """Return whether batches can be cut out of the tensors of a dataset, apart from its parts of `others`."""
    kind = type(dataset)
    if kind is Subset:
        return can_be_cut(dataset.dataset, *others)
    if kind in (ConcatDataset, StackDataset):
        return all(can_be_cut(part, *others) for part in _parts(dataset))
    return kind in (TensorDataset, Tensor, np.ndarray, *others) or is_whole_table(dataset)


def is_cut_here(loader: DataLoader[Any]) -> bool:
    """Return whether a loader only fetches whole batches in this process: its own iterator would add a cost to each."""
    is_plain = type(loader).__iter__ is DataLoader.__iter__ and not loader.num_workers
    pins = loader.pin_memory and torch.accelerator.is_available()
    return is_plain and type(loader.dataset) is BatchedFetch and not pins


class _NotCut(Exception):
    """The batch may differ from the one that `default_collate` makes."""


def _cut(dataset: Any, indices: Any) -> Any:
    """Return the batch that `default_collate` makes of the samples with these indices."""
    kind = type(dataset)
    if kind in (TensorDataset, Tensor, np.ndarray):
        return _cut_rows(dataset, _index(indices))
    if type(indices) is Tensor:
        indices = indices.tolist()
    if kind is Subset:
        return _cut(dataset.dataset, [dataset.indices[index] for index in indices])
    if kind is StackDataset:
        parts = dataset.datasets
        if isinstance(parts, Mapping):
            return {name: _cut(part, indices) for name, part in parts.items()}
        return [_cut(part, indices) for part in parts]
    if kind is ConcatDataset:
        return _cut_of_several(dataset, indices)
    if not is_table(dataset):
        raise _NotCut
    columns = rows_of_table(dataset, indices)
    if columns is None:
        raise _NotCut
    return columns


def _cut_rows(dataset: Any, index: slice | Tensor) -> Any:
    if type(dataset) is TensorDataset:
        return [_rows(tensor, index) for tensor in dataset.tensors]
    return _rows(dataset if type(dataset) is Tensor else _tensor_of(dataset), index)


def _index(indices: Sequence[Any] | Tensor) -> slice | Tensor:
    """Return what selects rows: a slice where one follows the other, as in validation data, which is much faster."""
    if isinstance(indices, Tensor):
        return indices
    if isinstance(indices, range) and indices.step == 1 and indices.start >= 0:
        return slice(indices.start, indices.stop)
    if set(map(type, indices)) != {int}:  # those of a Subset may be anything
        return torch.tensor(indices)
    first, end = indices[0], indices[0] + len(indices)
    if first >= 0 and indices[-1] == end - 1 and indices == list(range(first, end)):
        return slice(first, end)
    return torch.from_numpy(np.array(indices))


def _rows(tensor: Tensor, index: slice | Tensor) -> Tensor:
    if type(tensor) is not Tensor or tensor.layout is not torch.strided or not tensor.is_contiguous():
        raise _NotCut
    if isinstance(index, slice):
        if index.stop > tensor.shape[0]:
            raise IndexError
        return tensor[index].clone(memory_format=torch.contiguous_format)
    return tensor.index_select(0, index)


def _tensor_of(array: Any) -> Tensor:
    if array.ndim < 1 or array.dtype.kind not in "biuf" or not array.dtype.isnative or not array.flags.writeable:
        raise _NotCut
    return torch.from_numpy(array)


def _cut_of_several(dataset: ConcatDataset[Any], indices: Sequence[int]) -> Any:
    """Cut the rows out of each part, and put them into the order of the indices."""
    ends = dataset.cumulative_sizes
    if min(indices) < 0 or max(indices) >= ends[-1]:
        raise IndexError
    owners = [bisect_right(ends, index) for index in indices]
    batches = []
    for number in sorted(set(owners)):
        start = ends[number - 1] if number else 0
        own = [index - start for index, owner in zip(indices, owners, strict=True) if owner == number]
        batches.append(_cut(dataset.datasets[number], own))
    if len(batches) == 1:
        return batches[0]
    order = sorted(range(len(indices)), key=owners.__getitem__)
    return _joined(batches, torch.tensor(sorted(range(len(order)), key=order.__getitem__)))


def _joined(batches: list[Any], places: Tensor) -> Any:
    """Join batches of equal structure, and move their rows to these places."""
    first = batches[0]
    if isinstance(first, Tensor):
        if len({(type(batch), getattr(batch, "dtype", None)) for batch in batches}) > 1:
            raise _NotCut
        return torch.cat(batches).index_select(0, places)
    if any(type(batch) is not type(first) or len(batch) != len(first) for batch in batches):
        raise _NotCut
    if isinstance(first, dict):
        if any(batch.keys() != first.keys() for batch in batches):
            raise _NotCut
        return {name: _joined([batch[name] for batch in batches], places) for name in first}
    if isinstance(first, str):
        raise _NotCut
    return [_joined(list(column), places) for column in zip(*batches, strict=True)]


def _parts(dataset: Any) -> Sequence[Any]:
    parts = dataset.datasets
    return list(parts.values()) if isinstance(parts, Mapping) else parts

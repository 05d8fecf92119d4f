"""Batches of a table of Hugging Face `datasets`, read as columns instead of as a list of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_FORMATS = ("torch", "numpy")


def is_table(dataset: Any) -> bool:
    """Return whether a dataset is a table of `datasets` whose rows hold tensors or arrays."""
    kind = type(dataset)
    is_one = (kind.__module__, kind.__name__) == ("datasets.arrow_dataset", "Dataset")
    return is_one and dataset.format["type"] in _FORMATS


def is_whole_table(dataset: Any) -> bool:
    """Return whether a dataset is such a table with no value missing; this looks at all of it."""
    is_whole = is_table(dataset) and not _misses_values(dataset)
    return is_whole and (not len(dataset) or rows_of_table(dataset, range(min(len(dataset), 8))) is not None)


def rows_of_table(dataset: Any, indices: Sequence[int]) -> dict[str, Any] | None:
    """Return the batch that `default_collate` makes of these rows; None where the columns do not show it."""
    if min(indices) < 0:
        raise IndexError
    columns = {name: _batched(column) for name, column in dataset[list(indices)].items()}
    return None if any(column is None for column in columns.values()) else columns


def _batched(column: Any) -> Tensor | list[str] | None:
    if type(column) is np.ndarray and column.dtype.kind in "biuf" and column.dtype.isnative:
        return torch.as_tensor(column)
    if type(column) is Tensor and column.is_contiguous():
        return column
    return column if type(column) is list and all(type(item) is str for item in column) else None


def _misses_values(dataset: Any) -> bool:
    names = dataset.format["columns"]
    chunks = [chunk for name in names for chunk in dataset.data.column(name).chunks]
    return any(map(_misses, chunks))


def _misses(array: Any) -> bool:
    while True:
        if array.null_count or str(array.type).startswith("struct"):  # such as an image, which would be decoded
            return True
        if not hasattr(array, "flatten") or not hasattr(array.type, "value_type"):
            return False
        array = array.flatten()

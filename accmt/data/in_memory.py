"""Data in memory: loading them takes no work, and draws nothing at random."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, StackDataset, Subset, TensorDataset, default_collate, default_convert

from accmt.data.table import is_whole_table

_PLAIN = (TensorDataset, list, tuple, range, torch.Tensor, np.ndarray)


def is_ready(dataset: Any, collate: Any) -> bool:
    """Return whether the samples of a dataset are in memory and batched by torch's default (no `collate_fn`)."""
    return collate in (None, default_collate, default_convert) and _lies_in_memory(dataset)


def _lies_in_memory(dataset: Any) -> bool:
    if type(dataset) is Subset:
        return _lies_in_memory(dataset.dataset)
    if type(dataset) is ConcatDataset:
        return all(map(_lies_in_memory, dataset.datasets))
    if type(dataset) is StackDataset:
        parts = dataset.datasets
        return all(map(_lies_in_memory, parts.values() if isinstance(parts, Mapping) else parts))
    return type(dataset) in _PLAIN or is_whole_table(dataset)

"""Data in memory: loading them takes no work, and draws nothing at random."""

from __future__ import annotations

from typing import Any

from torch.utils.data import default_collate, default_convert

from accmt._compat import collates_by_default
from accmt.data.batched_fetch import can_be_cut


def is_ready(dataset: Any, collate: Any) -> bool:
    """Return whether the samples of a dataset are in memory and batched as torch does it (no `collate_fn`)."""
    is_torchs = collate in (None, default_collate, default_convert) and collates_by_default()
    return is_torchs and can_be_cut(dataset, list, tuple, range)

"""Copies of loaders, which are read instead of the users' own, so that those are never changed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch.utils.data import DataLoader

from accmt._compat import BEGUN_LOADER, end_loader_workers
from accmt.data.batch_size import Sizes
from accmt.data.batched_fetch import fetch_batched, is_cut_here
from accmt.data.iterable import Stream, show_dataset
from accmt.data.workers import outlast_signals


class LoaderCopy:
    """Loader of the same kind as a given one, that has not started. Its workers survive signals.

    Args:
        loader: The given loader.
        stream: Read instead of its dataset.

    Attributes:
        loader: The copy.
        sizes: The numbers of samples in its batches.
    """

    def __init__(self, loader: DataLoader[Any], stream: Stream | None = None) -> None:
        self.loader = copy.copy(loader)
        self._generator = self.loader.generator = torch.Generator()
        vars(self.loader).update({name: value for name, value in BEGUN_LOADER.items() if name in vars(loader)})
        if stream is not None:
            vars(self.loader)["dataset"] = stream
            self.loader.worker_init_fn = partial(show_dataset, loader.worker_init_fn)
        fetch_batched(self.loader)
        outlast_signals(self.loader)
        self.sizes = Sizes(self.loader)
        self._is_cut = is_cut_here(self.loader)
        self._batches: Callable[[], Any] = lambda: None

    @property
    def workers(self) -> int:
        """Number of worker processes that load batches."""
        return self.loader.num_workers

    def request(self, indices: Any) -> None:
        """Read the batches of these indices, instead of those from the loader's own sampler."""
        vars(self.loader)["sampler" if self.loader.batch_sampler is None else "batch_sampler"] = indices

    def seed(self, seed: int) -> None:
        """Seed the workers that start next."""
        self._generator.manual_seed(seed)

    def begin(self) -> Iterator[Any]:
        """Start reading."""
        loader: Any = self.loader
        if self._is_cut:
            return map(loader.collate_fn, map(loader.dataset.__getitems__, loader.batch_sampler))
        batches: Iterator[Any] = iter(loader)
        self._batches = ref(batches)
        return batches

    def close(self) -> None:
        """Shut down the workers, even if something still holds them."""
        end_loader_workers(self.loader, self._batches())

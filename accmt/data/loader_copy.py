"""Copies of loaders, which are read instead of the users' own, so that those are never changed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch.utils.data import DataLoader, IterableDataset

from accmt._compat import BEGUN_LOADER, end_loader_workers
from accmt.data.batch_size import Sizes
from accmt.data.batched_fetch import fetch_batched, is_cut_here
from accmt.data.indices import Indices
from accmt.data.iterable import Stream, show_dataset
from accmt.data.watch import Watch
from accmt.data.workers import outlast_signals


class OwnLoader(DataLoader[Any]):
    """Loader that no user has made; its workers may outlive a pass over the data, unless `keeps_workers` is false."""

    keeps_workers = True


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
        is_stream = isinstance(loader.dataset, IterableDataset) or stream is not None
        self._keeps = loader.num_workers > 0 and not is_stream and getattr(loader, "keeps_workers", False)
        self._watch = Watch(loader.dataset, loader.collate_fn) if self._keeps else Watch()
        if self._keeps:
            self.loader.worker_init_fn = self._watch.begin_worker
        outlast_signals(self.loader)
        self.sizes = Sizes(self.loader, self._watch)
        self._is_cut = is_cut_here(self.loader)
        self._indices: Any = None
        self._is_ahead = False
        self._batches: Callable[[], Any] = lambda: None

    @property
    def workers(self) -> int:
        """Number of worker processes that load batches."""
        return self.loader.num_workers

    @property
    def keeps_workers(self) -> bool:
        """True if the workers of the last pass are what new ones would be."""
        return self._keeps and self._watch.reports == self._indices.reporting and self._watch.is_same()

    def request(self, indices: Indices) -> None:
        """Read the batches of these indices, instead of those from the loader's own sampler."""
        indices.at_once = self._is_cut
        self._indices = indices
        vars(self.loader)["sampler" if self.loader.batch_sampler is None else "batch_sampler"] = indices

    def seed(self, seed: int) -> None:
        """Seed the workers that start next."""
        self._generator.manual_seed(seed)

    def begin(self, *, ahead: bool = False) -> Iterator[Any]:
        """Start reading; or start only to load, `ahead` of the next call, by workers that are kept."""
        loader: Any = self.loader
        if self._is_cut:
            return map(loader.collate_fn, map(loader.dataset.__getitems__, loader.batch_sampler))
        was_ahead, self._is_ahead = self._is_ahead, ahead
        if was_ahead and self._watch.is_same():
            return self._batches()  # type: ignore[no-any-return]
        if self._keeps and not ahead and not self.keeps_workers:
            self.close()
            vars(loader).update(BEGUN_LOADER, persistent_workers=self._watch.begin())
        self._watch.reports = 0
        batches: Iterator[Any] = iter(loader)
        self._batches = ref(batches)
        return batches

    def close(self) -> None:
        """Shut down the workers, even if something still holds them."""
        self._watch.reports = -1
        end_loader_workers(self.loader, self._batches())

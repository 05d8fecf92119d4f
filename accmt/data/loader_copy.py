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
from accmt.data.batched_fetch import fetch_batched
from accmt.data.indices import Indices
from accmt.data.iterable import Stream, show_dataset
from accmt.data.kept_workers import Watch
from accmt.data.workers import outlast_signals

_KEEPS = "keeps_workers"


def keep_workers(loader: DataLoader[Any], keeps: bool) -> None:
    """Note in a loader whether its workers may outlive a pass over its data."""
    vars(loader)[_KEEPS] = keeps


class LoaderCopy:
    """Loader of the same kind as a given one, that has not started. Its workers survive signals.

    Args:
        loader: The given loader.
        stream: Read instead of its dataset.
        keeps: The workers may outlive a pass, if `keep_workers` allows it.

    Attributes:
        loader: The copy.
        sizes: The numbers of samples in its batches.
    """

    def __init__(self, loader: DataLoader[Any], stream: Stream | None = None, *, keeps: bool = False) -> None:
        self.loader = copy.copy(loader)
        self._generator = self.loader.generator = torch.Generator()
        self._reset()
        if stream is not None:
            vars(self.loader)["dataset"] = stream
            self.loader.worker_init_fn = partial(show_dataset, loader.worker_init_fn)
        fetch_batched(self.loader)
        self._watch = Watch(loader.dataset, loader.collate_fn) if keeps and vars(loader).get(_KEEPS) else None
        if self._watch is not None:
            self.loader.worker_init_fn = self._watch.begin_worker
        outlast_signals(self.loader)
        self.sizes = Sizes(self.loader, self._watch)
        self._indices: Indices | None = None
        self._reporting: int | None = None  # workers that report in this pass
        self._is_ahead = False
        self._batches: Callable[[], Any] = lambda: None

    @property
    def workers(self) -> int:
        """Number of worker processes that load batches."""
        return self.loader.num_workers

    def request(self, indices: Indices) -> None:
        """Read the batches of these indices, instead of those from the loader's own sampler."""
        self._indices = indices
        vars(self.loader)["sampler" if self.loader.batch_sampler is None else "batch_sampler"] = indices

    def seed(self, seed: int) -> None:
        """Seed the workers that start next."""
        self._generator.manual_seed(seed)

    def begin(self) -> Iterator[Any]:
        """Start reading, or continue with what was started ahead."""
        is_ahead, self._is_ahead = self._is_ahead, False
        if is_ahead and self._watch is not None and self._watch.is_same():
            return self._batches()  # type: ignore[no-any-return]
        if self._watch is not None and not self.keeps_workers():
            self.close()
            self._reset()
            vars(self.loader)["persistent_workers"] = self._watch.begin()
        return self._start()

    def begin_ahead(self) -> None:
        """Start reading a pass that begins later, after `keeps_workers`."""
        self._start()
        self._is_ahead = True

    def keeps_workers(self) -> bool:
        """Return whether the workers of the last pass are what new ones would be."""
        return self._watch is not None and self.sizes.reports == self._reporting and self._watch.is_same()

    def _reset(self) -> None:
        started = vars(self.loader)
        started.update({name: value for name, value in BEGUN_LOADER.items() if name in started})

    def _start(self) -> Iterator[Any]:
        self.sizes.reports = 0
        self._reporting = None if self._indices is None else self._indices.last_requests()
        batches = iter(self.loader)
        self._batches = ref(batches)
        return batches

    def close(self) -> None:
        """Shut down the workers, even if something still holds them."""
        end_loader_workers(self.loader, self._batches())

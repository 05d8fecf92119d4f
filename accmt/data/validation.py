"""Batches of validation data: every sample once, on any number of processes, with the same draws in each evaluation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from accelerate import PartialState
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler

from accmt.data.epoch_reader import SEEDED
from accmt.data.in_memory import is_ready
from accmt.data.indices import EveryNth, Indices, length_of, sampler_of, with_sampler
from accmt.data.loader_copy import LoaderCopy, OwnLoader
from accmt.data.loaders import DataOptions, limited, validation_loader
from accmt.data.seeding import apart, mixed, read_apart
from accmt.data.user_loaders import check_alike, check_alike_as_read, check_workers, whole
from accmt.module import AcceleratorModule
from accmt.rules.store import dataset_name

# Samplers that do not draw.
_IN_ORDER = (SequentialSampler, list, tuple, range)
_VALIDATION = "validation"
# Workers that a process keeps between evaluations, of all validation data together.
_MOST_KEPT = 16


class ValidationData:
    """Batches of this process: every n-th of n processes. They can be iterated any number of times.

    Random draws while a batch is loaded depend on the seed, the dataset's key and the number of the batch among those
    of all processes, so they are the same in each evaluation. The loader itself is not changed.

    Attributes:
        loader: The loader for all processes together.
        samples: The number of samples in the last batch; None if the loader does not know it.

    Args:
        loader: The loader.
        key: The key of the dataset.
        seed: Returns the seed of the training.
        name: Its name in errors.
        limit: The most batches of all processes together, from the first on, or a fraction of all; None for all.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        key: str,
        seed: Callable[[], int],
        name: str,
        limit: int | float | None = None,
    ) -> None:
        state = PartialState()
        self.loader = loader = _with_own_sampler(loader)
        self.dataset = loader.dataset
        self.samples: int | None = None
        self._key, self._seed, self.name = key, seed, name
        self._process, self._processes = state.process_index, state.num_processes
        self.limit = limited(limit, None if self.is_stream else length_of(loader), "limit_val_batches")
        self._most = None if self.limit is None else len(range(self._process, self.limit, self._processes))
        self._copy = LoaderCopy(loader)
        self._indices: Indices | None = None
        self._is_ready = is_ready(loader.dataset, loader.collate_fn)
        if not self.is_stream:
            self._indices = self._sharded_indices()
            self._copy.request(self._indices)

    @property
    def is_stream(self) -> bool:
        return isinstance(self.dataset, IterableDataset)

    @property
    def length(self) -> int | None:
        """Number of batches of this process; None if unknown."""
        return None if self.is_stream else length_of(self)

    @property
    def is_limited(self) -> bool:
        """True if it may have fewer batches than the data."""
        whole_length = None if self.is_stream else length_of(self.loader)
        return self.limit is not None and (whole_length is None or self.limit < whole_length)

    def __len__(self) -> int:
        length = len(self._copy.loader)
        return length if self._most is None else min(length, self._most)

    def with_workers(self, workers: int) -> ValidationData:
        """Return the same batches, loaded by another number of workers."""
        loader = copy.copy(self.loader)
        settings = {"num_workers": workers, "persistent_workers": False, "prefetch_factor": 2 if workers else None}
        settings |= {} if workers else {"timeout": 0}
        vars(loader).update({name: value for name, value in settings.items() if name in vars(loader)})
        return ValidationData(loader, self._key, self._seed, self.name, self.limit)

    def __iter__(self) -> Iterator[Any]:
        seed = mixed(self._seed(), _VALIDATION, self._key)
        self._copy.seed(seed)
        batches = self._stream(seed) if self._indices is None else self._of_indices(self._indices, seed)
        for samples, batch in islice(self._copy.sizes.beside(batches, self._indices), self._most):
            self.samples = samples
            yield batch

    def close(self) -> None:
        """Shut down the workers."""
        self._copy.close()

    def _of_indices(self, indices: Indices, seed: int) -> Iterator[Any]:
        indices.begin(seed, 0, lambda: None, lambda: None)
        batches = self._copy.begin()
        return batches if self._is_ready or self._copy.workers else indices.read_apart(batches)

    def _stream(self, seed: int) -> Iterator[Any]:
        """Read a stream: all of it on each process, so that no sample is repeated to make shards even."""
        if self._copy.workers:
            batches = check_workers(self._copy.begin(), self._copy.workers, self.name, _refuse)
        else:
            with apart(seed):
                batches = self._copy.begin()
            batches = read_apart(batches, seed)
        if self._processes == 1:
            return batches
        return islice(check_alike_as_read(batches, self.name), self._process, None, self._processes)

    def _sharded_indices(self) -> Indices:
        loader, process, processes = self.loader, self._process, self._processes
        batches: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
        inner = sampler_of(loader) if type(batches) is BatchSampler else batches
        draws, workers = type(inner) not in _IN_ORDER, loader.num_workers
        if processes > 1:
            batches = EveryNth(batches, process, processes, pads=False)
        return Indices(batches, draws=draws, workers=workers, process=process, processes=processes)


def validation_loaders(
    options: DataOptions, module: AcceleratorModule, datasets: Mapping[str, Dataset[Any]], seed: Callable[[], int]
) -> dict[str, ValidationData]:
    """Return, for each dataset, the batches of this process.

    Raises:
        ConfigError: A loader of the module cannot be sharded across the processes.
    """
    data: dict[str, ValidationData] = {}
    kept = 0
    for key, dataset in datasets.items():
        collate = module.collate_fn_val or options.collate_val
        given = module.get_validation_dataloader(dataset)
        loader = validation_loader(dataset, options, collate) if given is None else given
        kept += loader.num_workers
        if isinstance(loader, OwnLoader):
            loader.keeps_workers = kept <= _MOST_KEPT
        name = dataset_name(key, datasets)
        place = f"val_dataset['{key}']" if name == key else "val_dataset"
        shown = f"the validation data '{name}'"
        data[key] = ValidationData(whole(loader, place), key, seed, shown, options.limit_val)
        check_alike(data[key].loader, place)
    return data


def _with_own_sampler(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Return the loader with a separate generator for a sampler of torch: training data may use that sampler too, and
    be in the middle of it while an evaluation interrupts them."""
    sampler = sampler_of(loader)
    generator = getattr(sampler, "generator", None)
    if not isinstance(generator, torch.Generator) or type(sampler) not in SEEDED:
        return loader
    sampler = copy.copy(sampler)
    vars(sampler)["generator"] = torch.Generator().set_state(generator.get_state())
    return with_sampler(loader, sampler)


def _refuse(text: str) -> None:
    raise RuntimeError(text)

"""Batches of validation data: every sample once, on any number of processes, with the same draws in each evaluation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any
from weakref import ref

import torch
from accelerate import PartialState
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler

from accmt._compat import end_loader_workers
from accmt.data.batch_size import Sizes
from accmt.data.epoch_reader import SEEDED, copied
from accmt.data.in_memory import is_ready
from accmt.data.loaders import DataOptions, validation_loader
from accmt.data.seeding import Indices, apart, mixed, read_apart
from accmt.data.user_loaders import check_alike, check_alike_as_read, check_workers, whole
from accmt.module import AcceleratorModule

# Samplers that do not draw.
_IN_ORDER = (SequentialSampler, list, tuple, range)
_VALIDATION = "validation"


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
    """

    def __init__(self, loader: DataLoader[Any], key: str, seed: Callable[[], int]) -> None:
        state = PartialState()
        self.loader = loader = _with_own_sampler(loader)
        self.dataset = loader.dataset
        self.samples: int | None = None
        self._key, self._seed = key, seed
        self._process, self._processes = state.process_index, state.num_processes
        self._copy = copied(loader)
        self._sizes = Sizes(self._copy)
        self._reading: Callable[[], Any] = lambda: None
        self._indices: Indices | None = None
        self._draws = not is_ready(loader.dataset, loader.collate_fn)
        if not self.is_stream:
            self._indices = self._shared_indices()
            vars(self._copy)["sampler" if loader.batch_sampler is None else "batch_sampler"] = self._indices

    @property
    def _name(self) -> str:
        return f"the validation data '{self._key}'"

    @property
    def is_stream(self) -> bool:
        return isinstance(self.dataset, IterableDataset)

    @property
    def length(self) -> int | None:
        """Number of batches of this process; None if unknown."""
        try:
            return None if self.is_stream else len(self._copy)
        except TypeError:
            return None

    def __len__(self) -> int:
        return len(self._copy)

    def with_workers(self, workers: int) -> ValidationData:
        """Return the same batches, loaded by another number of workers."""
        loader = copy.copy(self.loader)
        settings = {"num_workers": workers, "persistent_workers": False, "prefetch_factor": 2 if workers else None}
        settings |= {} if workers else {"timeout": 0}
        vars(loader).update({name: value for name, value in settings.items() if name in vars(loader)})
        return ValidationData(loader, self._key, self._seed)

    def __iter__(self) -> Iterator[Any]:
        seed = mixed(self._seed(), _VALIDATION, self._key)
        assert self._copy.generator is not None
        self._copy.generator.manual_seed(seed)
        batches = self._stream(seed) if self._indices is None else self._of_indices(self._indices, seed)
        for samples, batch in self._sizes.beside(batches, self._indices):
            self.samples = samples
            yield batch

    def close(self) -> None:
        """Shut down the workers."""
        end_loader_workers(self._copy, self._reading())

    def _of_indices(self, indices: Indices, seed: int) -> Iterator[Any]:
        indices.begin(seed, lambda: None, 0, lambda: None)
        batches = self._begin()
        return indices.read_apart(batches) if self._draws and not self._copy.num_workers else batches

    def _stream(self, seed: int) -> Iterator[Any]:
        """Read a stream: all of it on each process, so that no sample is repeated to make shards even."""
        if self._copy.num_workers:
            batches = check_workers(self._begin(), self._copy.num_workers, self._name, _refuse)
        else:
            with apart(seed):
                batches = iter(self._copy)
            batches = read_apart(batches, seed)
        if self._processes == 1:
            return batches
        return islice(check_alike_as_read(batches, self._name), self._process, None, self._processes)

    def _begin(self) -> Iterator[Any]:
        batches = iter(self._copy)
        self._reading = ref(batches)
        return batches

    def _shared_indices(self) -> Indices:
        loader = self.loader
        batches: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
        inner = batches.sampler if type(batches) is BatchSampler else batches
        return Indices(
            batches if self._processes == 1 else _Every(batches, self._process, self._processes),
            apart=type(inner) not in _IN_ORDER,
            for_workers=loader.num_workers > 0,
            process=self._process,
            processes=self._processes,
        )


def validation_loaders(
    options: DataOptions, module: AcceleratorModule, datasets: Mapping[str, Dataset[Any]], seed: Callable[[], int]
) -> dict[str, ValidationData]:
    """Return, for each dataset, the batches of this process.

    Raises:
        ConfigError: A loader of the module cannot be sharded across the processes.
    """
    data: dict[str, ValidationData] = {}
    for key, dataset in datasets.items():
        collate = module.collate_fn_val or options.collate_val
        given = module.get_validation_dataloader(dataset)
        loader = validation_loader(dataset, options, collate) if given is None else given
        name = f"val_dataset['{key}']"
        data[key] = ValidationData(whole(loader, name), key, seed)
        check_alike(data[key].loader, name)
    return data


def _with_own_sampler(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Return the loader with a separate generator for a sampler of torch: training data may use that sampler too, and
    be in the middle of it while an evaluation interrupts them."""
    batches, sampler = loader.batch_sampler, loader.sampler
    if type(batches) is BatchSampler:
        sampler = batches.sampler
    generator = getattr(sampler, "generator", None)
    if not isinstance(generator, torch.Generator) or type(sampler) not in SEEDED:
        return loader
    loader, sampler = copy.copy(loader), copy.copy(sampler)
    vars(sampler)["generator"] = torch.Generator().set_state(generator.get_state())
    if type(batches) is BatchSampler:
        batches = copy.copy(batches)
        batches.sampler = sampler
    vars(loader).update(sampler=sampler, batch_sampler=batches)
    return loader


def _refuse(text: str) -> None:
    raise RuntimeError(text)


class _Every:
    """Every n-th batch of indices, from the `first` on. They are drawn in rounds, the same on every process."""

    def __init__(self, batches: Iterable[Any], first: int, step: int) -> None:
        self._batches, self._first, self._step = batches, first, step

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._batches)
        while len(round_ := list(islice(batches, self._step))) > self._first:
            yield round_[self._first]

    def __len__(self) -> int:
        return len(range(self._first, len(self._batches), self._step))  # type: ignore[arg-type]  # or a TypeError

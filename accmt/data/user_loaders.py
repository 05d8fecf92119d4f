"""Checks that every sample is read once: loaders made by users, whose data may be sharded already.

The trainer shards batches across processes, so it needs the same data, in the same order, on each of them. A
DistributedSampler is replaced by the order that it divides; any other difference is an error before the first step, or
as soon as it can be detected.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any

import torch
from accelerate import PartialState
from accelerate.data_loader import IterableDatasetShard
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    WeightedRandomSampler,
)

from accmt._compat import shares_of
from accmt.config.errors import ConfigError, Problem, must_be
from accmt.data.digest import digest_of
from accmt.data.generators import Generators
from accmt.data.indices import length_of, sampler_of, with_sampler
from accmt.data.seeding import END, apart
from accmt.distributed.collective import everywhere
from accmt.notices import warn

_WHOLE = (SequentialSampler, RandomSampler, WeightedRandomSampler)
_ADVICE = "give each process all of the data, in one order: the trainer shards the batches"


def whole(loader: Any, name: str) -> DataLoader[Any]:
    """Return a loader of the data of all processes together, from one that a user may have prepared for several.

    Raises:
        ConfigError: It is unknown what each process would have to read.
    """
    if not isinstance(loader, DataLoader):
        raise _problem(name, must_be("a torch DataLoader", loader))
    processes, prepared = PartialState().num_processes, getattr(loader, "base_dataloader", None)
    if processes > 1 and prepared is not None:
        raise _problem(name, "the loader was prepared by an Accelerator: give it as it was before")
    if processes == 1:
        return loader if prepared is None else prepared
    dataset: Any = loader.dataset
    if isinstance(dataset, IterableDatasetShard) or shares_of(dataset) > 1:
        raise _problem(name, f"the dataset is already the shard of one process: {_ADVICE}")
    return _undistributed(loader, processes, name)


def _undistributed(loader: DataLoader[Any], processes: int, name: str) -> DataLoader[Any]:
    """Return the loader with the order that its DistributedSampler divides, if it has one."""
    sampler = sampler_of(loader)
    if not isinstance(sampler, DistributedSampler) or sampler.num_replicas == 1:
        return loader
    kind = type(sampler)
    if kind is not DistributedSampler and not kind.__module__.startswith("torchdata."):
        raise _problem(name, f"{kind.__name__} shards the data: {_ADVICE}")
    if sampler.num_replicas != processes:
        text = f"{kind.__name__} shards the data across {sampler.num_replicas} processes, and there are {processes}"
        raise _problem(name, f"{text}: {_ADVICE}")
    undivided = kind(
        sampler.dataset, num_replicas=1, rank=0, shuffle=sampler.shuffle, seed=sampler.seed, drop_last=sampler.drop_last
    )
    return with_sampler(loader, undivided)


def check_alike(loader: DataLoader[Any], name: str) -> None:
    """Check that all processes have the same data in the same order, as far as that shows before reading.

    Raises:
        ConfigError: They do not.
    """
    if PartialState().num_processes == 1:
        return
    order = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    seen: dict[str, Any] = {"lengths": length_of(loader.dataset), "numbers of batches": length_of(order)}
    if not isinstance(loader.dataset, IterableDataset):
        seen |= {"samples": _first_samples(loader.dataset), "orders": _first_indices(order, loader.dataset)}
    others = everywhere(lambda: seen)
    for what in seen:
        found = {each[what] for each in others}
        if len(found) > 1 and None not in found:
            raise _problem(name, f"the processes have different {what}: {_ADVICE}")


def check_alike_as_read(batches: Iterator[Any], name: str) -> Iterator[Any]:
    """Return the batches of a stream that each process reads, after comparing the first ones.

    Raises:
        RuntimeError: They differ.
    """
    first = next(batches, END)
    if not are_alike(first):
        raise RuntimeError(f"{name}: the processes read different samples from the stream: {_ADVICE}")
    return batches if first is END else chain([first], batches)


def warn_of_differences(samples: Any) -> None:
    """Warn if the first samples that the processes read from a training stream differ."""
    if not are_alike(samples):
        text = "the processes read different samples from the training stream, and each trains on its part of what it"
        warn(f"{text} reads: if the stream is sharded already, {_ADVICE}")


def are_alike(value: Any) -> bool:
    """Return whether a value is the same on all processes, which call this together; True if that is unknown."""
    found = set(everywhere(lambda: "" if value is END else _digest(value)))
    return len(found) == 1 or None in found


def check_workers(batches: Iterator[Any], workers: int, name: str, tell: Callable[[str], None]) -> Iterator[Any]:
    """Yield the batches of a stream that several workers read, comparing the first two rounds.

    If each worker reads all of it, all return the same batch in the first round, and again in the second.

    Args:
        batches: The batches.
        workers: Number of workers that read them.
        name: Name of the data.
        tell: Called with a message if each worker reads all samples.
    """
    if workers == 1:
        yield from batches
        return
    digests: list[str | None] = []
    for batch in batches:
        if len(digests) < 2 * workers:
            digests.append(_digest(batch))
            if len(digests) == 2 * workers and _are_repeated(digests, workers):
                tell(_repeated(workers, name))
        yield batch
    if len(digests) == workers and _are_repeated(digests, workers):
        tell(_repeated(workers, name))


def _are_repeated(digests: list[str | None], workers: int) -> bool:
    rounds = [set(digests[start : start + workers]) for start in range(0, len(digests), workers)]
    are_same = None not in digests and all(len(each) == 1 for each in rounds)
    return are_same and (len(rounds) == 1 or rounds[0] != rounds[1])


def _repeated(workers: int, name: str) -> str:
    return (
        f"{name}: each of {workers} workers reads all samples of the stream, so that they count {workers} times: "
        f"divide them in __iter__ by torch.utils.data.get_worker_info(), or load them with one worker or none"
    )


def _problem(name: str, text: str) -> ConfigError:
    return ConfigError([Problem(name, text)], "fit(...)")


def _first_samples(dataset: Any) -> str | None:
    """Compute a digest of the first and the last sample; None if it is not the same when they are read twice."""
    if next(iter(Generators({"dataset": dataset})), None) is not None:
        return None  # reading would draw from a generator that checkpoints hold
    try:
        found = []
        for _ in range(2):
            with apart(1):
                found.append(_digest([dataset[0], dataset[len(dataset) - 1]]))
    except Exception:
        return None  # the loop will raise what is wrong with a dataset
    return found[0] if found[0] == found[1] else None


def _first_indices(order: Any, dataset: Any) -> str | None:
    """Compute a digest of the first indices from a copy of a sampler, or of the seed that determines them."""
    inner = order.sampler if type(order) is BatchSampler else order
    if type(inner) is RandomSampler and not inner.replacement and isinstance(inner.generator, torch.Generator):
        return _digest(inner.generator.initial_seed())
    if type(inner) in _WHOLE or isinstance(inner, Iterator):
        return None
    try:
        copied = copy.deepcopy(order, {id(dataset): dataset})
        with apart(1):
            return _digest(list(islice(copied, 4 * PartialState().num_processes)))
    except Exception:
        return None


def _digest(value: Any) -> str | None:
    """Compute a digest that distinguishes values; None if that is not possible."""
    try:
        return digest_of(value)
    except Exception:  # whatever an object of the user raises
        return None

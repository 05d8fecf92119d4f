"""Loaders for training and evaluation, and training batches from any position in an epoch.

The order of the data is a function of (seed, epoch) and draws nothing from the process-wide generators, so that it is
the same on every process and after every resume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from typing import Any, TypeGuard

import torch
from accelerate import PartialState
from accelerate.data_loader import get_sampler
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, Sampler

from accmt.config.errors import ConfigError, Problem
from accmt.data.accumulation import Accumulation, steps_before
from accmt.data.epoch_reader import Place, Reader, ReaderState
from accmt.data.in_memory import is_ready
from accmt.data.indices import length_of
from accmt.data.loader_copy import OwnLoader
from accmt.data.position_unit import Unit, check_move
from accmt.data.seeding import END
from accmt.data.workers import ADVICE, forks, main_is_unguarded
from accmt.rules.codec import from_plain_at

Collate = Callable[[list[Any]], Any]


@dataclass(frozen=True, slots=True)
class DataOptions:
    """Options for turning datasets into batches."""

    batch_size: int
    eval_batch_size: int
    shuffle: bool
    sampler: Any | None
    collate_train: Collate | None
    collate_val: Collate | None
    workers: int | None
    pin_memory: bool
    drop_last: bool
    limit_train: int | float | None = None
    limit_val: int | float | None = None

    @property
    def collates(self) -> tuple[Collate | None, ...]:
        """The collate functions for training and for validation."""
        return self.collate_train, self.collate_val


@dataclass(slots=True)
class Window:
    """The batches of one optimizer step.

    Attributes:
        batches: Reads the batches, each with its number of samples, None where the loader does not know it.
        size: The number of batches.
        is_last: True if they are the last of their epoch.
    """

    batches: Iterator[tuple[int | None, Any]]
    size: int
    is_last: bool


def training_loader(dataset: Dataset[Any], options: DataOptions, collate: Collate | None) -> DataLoader[Any]:
    """Build the loader for a training dataset, before it is sharded across processes."""
    sampler = SamplerChain(options.sampler) if is_several(options.sampler) else options.sampler
    if sampler is None and options.shuffle and not isinstance(dataset, IterableDataset):
        sampler = RandomSampler(dataset, generator=torch.Generator())  # type: ignore[arg-type]  # a map-style dataset
    return _loader(dataset, options, options.batch_size, sampler, collate, options.drop_last)


def validation_loader(dataset: Dataset[Any], options: DataOptions, collate: Collate | None) -> DataLoader[Any]:
    """Build the loader for a validation dataset, in its own order, before it is sharded across processes."""
    return _loader(dataset, options, options.eval_batch_size, None, collate, False)


def limited(limit: int | float | None, length: int | None, name: str) -> int | None:
    """Return the most batches that a limit allows: a number of them, or a fraction of `length`, at least one.

    Raises:
        ConfigError: A fraction of an unknown length is asked for.
    """
    if not isinstance(limit, float):
        return limit
    if length is None:
        text = f"is a fraction ({limit}), and the data have no known length: give a number of batches"
        raise ConfigError([Problem(name, text)], "fit(...)")
    return max(1, int(Fraction(str(limit)) * length))


def is_several(sampler: Any) -> TypeGuard[Sequence[Sampler[int]]]:
    """Return whether a list of samplers was given, not one sampler or a list of indices."""
    return isinstance(sampler, list | tuple) and any(isinstance(item, Sampler) for item in sampler)


class SamplerChain(Sampler[int]):
    """Several samplers, one after the other in each epoch."""

    def __init__(self, samplers: Sequence[Sampler[int]]) -> None:
        self.samplers = tuple(samplers)

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self.samplers)

    def __len__(self) -> int:
        lengths = (len(sampler) for sampler in self.samplers)  # type: ignore[arg-type]  # a TypeError where one has none
        return sum(lengths)


class TrainingData:
    """The training batches of this process, in windows of one optimizer step each.

    Args:
        loader: The loader, before it is sharded across processes.
        accumulation: Batches per optimizer step, or a table: first epoch -> batches.
        seed: The seed of the order of the data; the same on every process.
        limit: The most batches of this process in an epoch, or a fraction of all; None for all.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        accumulation: int | Mapping[int, int],
        seed: int,
        limit: int | float | None = None,
    ) -> None:
        self.loader = loader
        self.accumulation = Accumulation.of(accumulation)
        self.seed = seed
        sampler = loader.sampler if loader.batch_sampler is None else get_sampler(loader)
        self._samples = length_of(sampler)
        self.samplers = tuple(_samplers(sampler))
        state = PartialState()
        size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 1
        self._batch_size: int = size * state.num_processes
        self.unit = Unit.of_loader(loader, size, state.num_processes)
        self._reader = Reader(loader, self.samplers, state.process_index, state.num_processes)
        self._ahead: Mapping[str, Any] | None = None
        self._is_last = True
        self.whole_length = length_of(self._reader)
        self._most = limited(limit, self.whole_length, "limit_train_batches")
        self.batches_per_epoch = _least(self.whole_length, self._most)

    @property
    def is_limited(self) -> bool:
        """True if epochs are shorter than the data."""
        return self.batches_per_epoch != self.whole_length

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps per epoch; None if the length of the data is unknown, or epochs differ."""
        if self.batches_per_epoch is None:
            return None
        different = {-(-self.batches_per_epoch // size) for size in self.accumulation.sizes}
        return different.pop() if len(different) == 1 else None

    @property
    def outruns_epochs(self) -> bool:
        """True if epochs are limited, and a resume after the first may not be exact."""
        return self.is_limited and self._reader.outruns_epochs

    def steps_in(self, epoch: int) -> int | None:
        """Count the optimizer steps of an epoch; None if the length of the data is unknown."""
        batches = self.batches_per_epoch
        return None if batches is None else -(-batches // self.accumulation.at(epoch))

    def steps_before(self, epoch: int) -> int | None:
        """Count the optimizer steps of all epochs before one; None if the length of the data is unknown."""
        batches = self.batches_per_epoch
        return None if batches is None else steps_before(self.accumulation, epoch, batches)

    def epochs_for(self, steps: int) -> int | None:
        """Count the epochs that contain so many optimizer steps; None if the length of the data is unknown."""
        batches = self.batches_per_epoch
        return None if batches is None else self.accumulation.epochs_for(steps, batches)

    @property
    def batch_size(self) -> int:
        """Samples per batch of one process, unless batches differ in size."""
        return self._batch_size // int(PartialState().num_processes)

    @property
    def samples_per_step(self) -> int:
        """Maximum number of samples in one optimizer step, over all processes."""
        return self._batch_size * max(self.accumulation.sizes)

    def samples_after(self, batches: int, offset: int = 0) -> int:
        """Count the samples, without padding, in the first `batches` batches of all processes and in what was skipped
        before them."""
        samples: int = batches * self._batch_size + offset * (self._batch_size // self.unit.size)
        return samples if self._samples is None else min(samples, self._samples)

    def batches_after(self, offset: int) -> int | None:
        """Count the batches of this process in an epoch without its first `offset` samples; None if unknown."""
        if not offset:
            return self.batches_per_epoch
        length = None if self.whole_length is None else self._reader.length_after(offset)
        # The rest of a batch that was begun with another size is left out.
        return _least(length, None if self._most is None else self._most - 1)

    def steps_left(self, epoch: int, batch: int, offset: int) -> int | None:
        """Count the optimizer steps of an epoch from a position on; None if the length of the data is unknown."""
        batches = self.batches_after(offset)
        return None if batches is None else max(0, -(-(batches - batch) // self.accumulation.at(epoch)))

    def locate(self, place: int, then: Unit) -> tuple[int, int]:
        """Locate a position in an epoch that was counted in another unit.

        Returns:
            Batches of this process to skip, and the offset to skip before them.

        Raises:
            Mismatch: There is no such position: samples would be trained on twice, or never.
        """
        batch, offset = divmod(place, self.unit.size)
        if place and then != self.unit:
            check_move(then, self.unit, starts_between_batches=not offset or self._reader.reads_from_anywhere)
        return batch, offset

    def state(self) -> dict[str, Any]:
        """Return what this process needs, besides epoch and batch, to resume after the windows taken so far.

        It consists of numbers, strings, tensors, arrays and containers of them, provided that the states of loader and
        dataset do.
        """
        return self._reader.state(at_end=self._is_last) if self._ahead is None else dict(self._ahead)

    def check(self, state: Mapping[str, Any]) -> None:
        """Check that it is a result of `state`, of data with the same random generators.

        Raises:
            ValueError, TypeError, RuntimeError, KeyError: It is not.
        """
        from_plain_at("data.reading", ReaderState, state)
        self._reader.check(state)

    def restore(self, state: Mapping[str, Any], *, moved: bool = False) -> list[str]:
        """Make the next `windows` resume from a state, at the position where it was taken.

        Args:
            state: The result of `state`.
            moved: The position is counted in another unit now, so the loader's own state is no longer valid.

        Returns:
            What will differ from the original training, one line each.
        """
        return self._reader.restore(state, moved=moved)

    def windows(
        self, epoch: int, skip: int = 0, skipped: Callable[[], None] = lambda: None, offset: int = 0
    ) -> Iterator[Window]:
        """Return the windows of an epoch without its first `offset` samples and the next `skip` batches; `skipped` is
        called once these have been skipped."""
        self._ahead, self._is_last = None, False
        batches, length = self._reader.read(Place(epoch, self.seed, skip, offset), skipped), self.batches_after(offset)
        self._check_length(epoch)
        together = self.accumulation.at(epoch)
        if length is None:
            return self._windows_of_unknown(batches, together)
        return self._windows_of_known(batches, length - skip, together)

    def start_ahead(self, epoch: int) -> None:
        """Let workers that are kept load the first batches of the epoch that is read next."""
        self._reader.start_ahead(Place(epoch, self.seed))

    def close(self) -> None:
        """Shut down the workers."""
        self._reader.close()

    def _check_length(self, epoch: int) -> None:
        """Check that the epoch has the length that the training expects of every epoch.

        Raises:
            RuntimeError: It does not.
        """
        length = self._reader.length_of_epoch
        if length != self.whole_length:
            raise RuntimeError(
                f"epoch {epoch} of the training data has {length} batches of this process, and {self.whole_length} "
                f"were counted at the start: the steps of the training, its schedules and its rules require epochs "
                f"of equal length. Make all epochs equally long, or remove __len__ from the sampler or the dataset "
                f"that changes: then every epoch is read to its end"
            )

    def _windows_of_known(self, batches: Iterator[Any], remaining: int, together: int) -> Iterator[Window]:
        while remaining > 0:
            size = min(together, remaining)
            remaining -= size
            self._is_last = remaining == 0
            yield Window(self._promised(batches, size, self._is_last), size, self._is_last)

    def _promised(self, batches: Iterator[Any], size: int, is_last: bool) -> Iterator[tuple[int | None, Any]]:
        """Yield the next batches, whose number follows from the length of the data.

        Raises:
            RuntimeError: There are fewer.
        """
        for _ in range(size):
            batch: Any = next(batches, END)
            if batch is END:
                who = "their length promises" if self.whole_length is not None else "limit_train_batches asks for"
                promised = f"{who} {self.batches_per_epoch} batches of this process in each epoch"
                raise RuntimeError(f"the training data end early: {promised}")
            yield batch
        if is_last:
            self._reader.finish(batches)

    def _windows_of_unknown(self, batches: Iterator[Any], together: int) -> Iterator[Window]:
        """Yield windows, reading one ahead: nothing else shows whether a window is the last."""
        window = list(islice(batches, together))
        while window:
            self._ahead = self._reader.state(at_end=False)
            following = list(islice(batches, together))
            if not following:
                self._reader.finish(batches)
                self._ahead, self._is_last = None, True
            yield Window(iter(window), len(window), not following)
            window = following


def _least(*counts: int | None) -> int | None:
    return min((count for count in counts if count is not None), default=None)


def _loader(
    dataset: Dataset[Any],
    options: DataOptions,
    batch_size: int,
    sampler: Any | None,
    collate: Collate | None,
    drop_last: bool,
) -> DataLoader[Any]:
    state = PartialState()
    return OwnLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=collate,
        drop_last=drop_last,
        num_workers=_workers(dataset, options, collate),
        pin_memory=options.pin_memory and state.device.type == "cuda",
    )


def _workers(dataset: Dataset[Any], options: DataOptions, collate: Collate | None) -> int:
    """Return the number of workers: by default one per process, if loading takes work and workers can be started.

    A stream gets none, because each of its workers would read all of it.
    """
    if options.workers is not None:
        return options.workers
    if isinstance(dataset, IterableDataset) or is_ready(dataset, collate) or _cannot_start():
        return 0
    return int(PartialState().num_processes)


def _cannot_start() -> bool:
    return not forks() and main_is_unguarded()


def without_workers(options: DataOptions, loaders: Iterable[DataLoader[Any]]) -> list[str]:
    """Return a warning that loaders lack workers because none can be started; empty if that makes no difference."""
    slow = [loader for loader in loaders if not loader.num_workers and not is_ready(loader.dataset, loader.collate_fn)]
    if (
        options.workers is not None
        or not _cannot_start()
        or all(isinstance(loader.dataset, IterableDataset) for loader in slow)
    ):
        return []
    return [f"the data are loaded without workers, which would run the script of the training again. {ADVICE}"]


def _samplers(sampler: Any) -> Iterator[Any]:
    """Yield the samplers that a sampler consists of."""
    if isinstance(sampler, BatchSampler):
        yield from _samplers(sampler.sampler)
    elif isinstance(sampler, SamplerChain):
        yield from sampler.samplers
    else:
        yield sampler

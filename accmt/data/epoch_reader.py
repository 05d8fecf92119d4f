"""Reader of training data: each process reads its shard of a loader, from any position in an epoch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    IterDataPipe,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from accmt.checkpoint.object_state import has_state
from accmt.data.generators import Generators
from accmt.data.in_memory import is_ready
from accmt.data.indices import Indices, Rest, rest_of, without_first
from accmt.data.iterable import Stream
from accmt.data.loader_copy import LoaderCopy
from accmt.data.seeding import END, apart, fewer, mixed, read_apart, restore_at_end
from accmt.data.user_loaders import check_workers
from accmt.notices import warn

# Samplers that draw from their own generator, which is seeded for every epoch, or do not draw.
SEEDED = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler, SequentialSampler, DistributedSampler)
_PLAIN = (*SEEDED, BatchSampler, list, tuple, range, type(None))
_FIXED = (RandomSampler, SequentialSampler)
_SAMPLER = "sampler"


@dataclass(frozen=True, slots=True)
class Moment:
    """State at a moment: at the start of an epoch, or at the position where it was taken."""

    generators: dict[str, Any]
    samplers: list[Any] | None


@dataclass(frozen=True, slots=True)
class ReaderState:
    """Types of the state returned by `Reader.state`, for states read from a file.

    `course` is the state of a stream that this process reads itself.
    """

    processes: int
    seeds: list[int | None]
    workers: int
    loader: Any
    dataset: Any
    course: Any
    start: Moment | None
    now: Moment


@dataclass(frozen=True, slots=True)
class Place:
    """Position where reading starts.

    Attributes:
        epoch: The epoch.
        seed: The seed of all epochs.
        skip: The number of batches of this process to skip.
        offset: The number of samples of all processes to skip before those batches (of batches, if a user's batch
            sampler makes them): a training resumed with other batches may start between two of them.
    """

    epoch: int
    seed: int
    skip: int = 0
    offset: int = 0

    @property
    def is_within(self) -> bool:
        """True if part of the epoch is skipped."""
        return self.skip > 0 or self.offset > 0


class Reader:
    """Reader of a loader, epoch by epoch. The loader itself is not changed: a copy of the same kind is read.

    Args:
        loader: The loader, before it is sharded across processes.
        samplers: The samplers that decide its order.
        process, processes: Rank of this process, and the world size.
    """

    def __init__(self, loader: DataLoader[Any], samplers: Sequence[Any], process: int, processes: int) -> None:
        is_stream = isinstance(loader.dataset, IterableDataset)
        is_wrapped = is_stream and (processes > 1 or _needs_seeds(loader))
        self._stream = Stream(loader, process, processes) if is_wrapped else None
        self._copy = LoaderCopy(loader, self._stream)
        self._dataset: Any = loader.dataset
        self._process, self._processes = process, processes
        self._samplers = (*samplers, loader.batch_sampler)
        self._seeds = [_initial_seed(sampler) for sampler in samplers]
        self._is_ready = is_ready(loader.dataset, loader.collate_fn)
        # True if there is a state that only the loader can get, from its workers.
        self._asks_loader = has_state(loader) and self.workers > 0 and (is_stream or has_state(loader.dataset))
        self._keeps_dataset = not is_stream and not self.workers and has_state(loader.dataset)
        self._indices: Indices | None = None
        self._rest: Rest | None = None
        draws = not all(map(_is_plain, self._samplers))
        if not is_stream:
            self._rest, batches = rest_of(loader, process, processes)
            self._indices = Indices(batches, draws=draws, workers=self.workers, process=process, processes=processes)
            self._copy.request(self._indices)
        roots = {"dataset": loader.dataset, "collate_fn": loader.collate_fn}
        if draws:
            roots |= {f"{_SAMPLER}.{place}": sampler for place, sampler in enumerate(self._samplers)}
        self._generators = Generators(roots)
        self._start: dict[str, Any] = {}
        self._resumed: Mapping[str, Any] | None = None
        self._is_open = self._has_ended = self._are_compared = False

    @property
    def workers(self) -> int:
        """Number of worker processes that load batches."""
        return self._copy.workers

    @property
    def reads_from_anywhere(self) -> bool:
        """True if reading can start at any sample of an epoch, not only between two of its batches."""
        return self._rest is not None or (self._stream is not None and not self.workers)

    @property
    def outruns_epochs(self) -> bool:
        """True if the end of an epoch that is cut may not be restored exactly: something keeps a state there."""
        outlives = self._asks_loader and bool(self._copy.loader.persistent_workers)
        return outlives or any(map(has_state, self._samplers)) or (self._indices is None and has_state(self._dataset))

    def __len__(self) -> int:
        return len(self._copy.loader)

    def length_after(self, offset: int) -> int:
        """Count this process's batches in an epoch without its first `offset` samples, counted as in `Place`.

        Raises:
            TypeError: The length of the data is unknown.
        """
        part = self._stream if self._rest is None else self._rest
        with nullcontext() if part is None else without_first(part, offset):
            return len(self)

    @property
    def length_of_epoch(self) -> int | None:
        """Number of batches of this process in the whole epoch being read; None if unknown."""
        try:
            return self.length_after(0)
        except TypeError:
            return None

    def read(self, place: Place, skipped: Callable[[], None]) -> Iterator[tuple[int | None, Any]]:
        """Return the batches of an epoch from a position on, each with its number of samples, None if unknown.

        `skipped` is called once, before the first batch that is not skipped is loaded.
        """
        state, self._resumed = self._resumed, None
        self._copy.seed(mixed(place.seed, place.epoch))
        for part in (*self._samplers, self._dataset):
            if hasattr(part, "set_epoch"):
                part.set_epoch(place.epoch)
        moment = None if state is None else state["start" if place.is_within else "now"]
        if moment is not None:
            self._restore(moment)
        # Samplers that have not started have no state to record, nor do those that were just restored.
        samplers = self._states_of_samplers() if moment is None and self._is_open else (moment or {}).get("samplers")
        self._start = {"generators": self._generators.states(), "samplers": samplers}
        if self._keeps_dataset and state is not None and state["dataset"] is not None:
            self._dataset.load_state_dict(state["dataset"])
        self._is_open, self._has_ended = True, False
        skip = self._restore_loader(state, place)
        drawn = partial(_restore_drawn, self._generators, state if place.is_within else None)
        if self._indices is not None:
            batches = self._read_indices(self._indices, place, skip, drawn)
        else:
            batches = self._read_stream(place, skip, drawn, None if state is None else state["course"])
            if self.workers > 1 and not self._are_compared:
                batches = check_workers(batches, self.workers, "the training data", warn)
            self._are_compared = True
        skipped()
        return self._copy.sizes.beside(batches, self._indices)

    def start_ahead(self, place: Place) -> None:
        """Let workers that are kept load the first batches of the next epoch, if only its number decides its order."""
        is_fixed = all(type(part) in _FIXED and part.data_source is self._dataset for part in self._samplers[:-1])
        is_told = has_state(self._dataset) or hasattr(self._dataset, "set_epoch") or {None} != {*self._seeds}
        if self._indices is not None and is_fixed and not is_told and self._copy.keeps_workers:
            self._begin_indices(self._indices, place, 0, lambda: None)
            self._copy.begin(ahead=True)

    def close(self) -> None:
        """Shut down the workers."""
        self._copy.close()

    def finish(self, batches: Iterator[Any]) -> None:
        """Let objects that keep a state reach their end as well, after the last batch of an epoch."""
        if self._stream is not None and not self.workers:
            self._stream.finish()
        elif self._asks_loader:
            self._has_ended = next(batches, END) is END

    def state(self, *, at_end: bool) -> dict[str, Any]:
        """Return the state to resume reading from: within an epoch, or `at_end` from the start of the next."""
        if self._resumed is not None:
            return dict(self._resumed)
        is_open, loader = self._is_open, self._copy.loader
        asks_loader = self._asks_loader and (not at_end or (self._has_ended and loader.persistent_workers))
        state: dict[str, Any] = {
            "processes": self._processes,
            "seeds": self._seeds,
            "workers": self.workers,
            "loader": loader.state_dict() if is_open and asks_loader else None,  # type: ignore[attr-defined]
            "dataset": self._dataset.state_dict() if is_open and self._keeps_dataset else None,
            "course": self._stream.state() if is_open and self._stream is not None and not self.workers else None,
            "start": None if at_end else self._start,
            "now": {
                "generators": self._generators.states(),
                "samplers": self._states_of_samplers() if is_open and at_end else None,
            },
        }
        return copy.deepcopy(state)

    def check(self, state: Mapping[str, Any]) -> None:
        """Check that the generators that exist accept their states, and leave them unchanged."""
        if state["processes"] == self._processes:  # otherwise they are not restored
            for moment in filter(None, (state["start"], state["now"])):
                self._generators.check(moment["generators"])

    def restore(self, state: Mapping[str, Any], *, moved: bool) -> list[str]:
        """Make the next `read` resume from a state; see `TrainingData.restore`."""
        if len(state["seeds"]) == len(self._seeds):
            self._seeds = list(state["seeds"])
        if state["processes"] != self._processes:
            return []  # each process read another shard
        self._resumed = {**state, "loader": None} if moved else state
        return self._changes(state)

    def _changes(self, state: Mapping[str, Any]) -> list[str]:
        """Describe what keeps this reader from continuing exactly as the one that returned a state."""
        former, there, changes = state["workers"], dict(self._generators), []
        own = [name for name in there if name.split(".")[0] != _SAMPLER]
        draws_alike = bool(former and self.workers) or not (own or has_state(self._dataset))
        if former != self.workers and not (draws_alike and self._indices is not None):
            text = f"the training data were loaded by {former} worker(s) and are loaded by {self.workers} now"
            changes.append(f"{text}: random draws while they are loaded will differ")
        missing = [name for name in state["now"]["generators"] if name not in there]
        if missing:
            changes.append(f"random generators of the checkpoint no longer exist: {', '.join(missing)}")
        return changes

    def _states_of_samplers(self) -> list[Any]:
        return [copy.deepcopy(sampler.state_dict()) if has_state(sampler) else None for sampler in self._samplers]

    def _restore(self, moment: Mapping[str, Any]) -> None:
        """Restore samplers and generators to the states of the start of an epoch."""
        for sampler, former in zip(self._samplers, moment["samplers"] or (), strict=False):
            if former is not None and has_state(sampler):
                restore_at_end(sampler, former)
        self._generators.restore(moment["generators"])

    def _restore_loader(self, state: Mapping[str, Any] | None, place: Place) -> int:
        """Restore the loader, if its state is known; return the number of batches to skip if it is not."""
        if not self._asks_loader or state is None or state["workers"] != self.workers or state["loader"] is None:
            return place.skip
        self._copy.loader.load_state_dict(state["loader"])  # type: ignore[attr-defined]
        return 0

    def _read_indices(self, indices: Indices, place: Place, skip: int, drawn: Callable[[], None]) -> Iterator[Any]:
        self._begin_indices(indices, place, skip, drawn)
        batches = self._copy.begin()
        if not skip:
            drawn()
        return batches if self._is_ready or self.workers else indices.read_apart(batches)

    def _begin_indices(self, indices: Indices, place: Place, skip: int, drawn: Callable[[], None]) -> None:
        assert self._rest is not None
        self._rest.offset = place.offset
        seeds = [place.seed + number if own is None else own for number, own in enumerate(self._seeds)]
        reset = partial(_seed_samplers, self._samplers, [_seed_of_epoch(seed, place.epoch) for seed in seeds])
        # Not a method: workers do not end in time if their loader is part of a reference cycle.
        indices.begin(mixed(place.seed, place.epoch), skip, reset, drawn)

    def _read_stream(
        self, place: Place, skip: int, drawn: Callable[[], None], state: Mapping[str, Any] | None
    ) -> Iterator[Any]:
        seed = mixed(place.seed, place.epoch)
        with apart(seed):
            if self._stream is not None:
                self._stream.begin(place.seed, place.epoch)
            if self._stream is not None and not self.workers:
                skip = 0
                self._stream.resume(state, place.skip, place.offset)
            batches = self._copy.begin()
        if not self.workers:
            batches = read_apart(batches, mixed(seed, self._process) + place.skip - skip)
        passed = sum(1 for _ in islice(batches, skip))
        if passed < skip:
            raise fewer(skip, passed)
        if not skip and not self.workers:
            drawn()
        return batches


def _restore_drawn(generators: Generators, state: Mapping[str, Any] | None) -> None:
    """Restore generators after batches were skipped without being loaded; those of samplers have advanced already."""
    if state is not None:
        generators.restore(state["now"]["generators"], but=_SAMPLER)


def _seed_samplers(samplers: Sequence[Any], seeds: Sequence[int]) -> None:
    for sampler, seed in zip(samplers, seeds, strict=False):  # the last is a batch sampler
        if hasattr(sampler, "generator"):
            if sampler.generator is None:
                sampler.generator = torch.Generator()
            sampler.generator.manual_seed(seed)


def _initial_seed(sampler: Any) -> int | None:
    """Return the seed of a generator that the user gave to a sampler; None for one of ours."""
    generator = getattr(sampler, "generator", None)
    if generator is None or generator.initial_seed() == torch.Generator().initial_seed():
        return None
    return int(generator.initial_seed())


def _seed_of_epoch(seed: int, epoch: int) -> int:
    return (seed * 1_000_003 + epoch) % 2**63


def _needs_seeds(loader: DataLoader[Any]) -> bool:
    """Return whether a stream must be seeded for each batch: not if workers that restart every epoch read all of it
    again, and not if it is a data pipe, which is recognized by its type."""
    restarts = loader.num_workers > 0 and not loader.persistent_workers and not has_state(loader)
    return not restarts and not isinstance(loader.dataset, IterDataPipe)


def _is_plain(sampler: Any) -> bool:
    return type(sampler) in _PLAIN or type(sampler).__module__.startswith("torchdata.")

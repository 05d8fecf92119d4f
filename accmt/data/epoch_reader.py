"""Reader of training data: each process reads its shard of a loader, from any position in an epoch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any
from weakref import ref

import torch
from accelerate.data_loader import BatchSamplerShard
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

from accmt._compat import BEGUN_LOADER, end_loader_workers
from accmt.checkpoint.state_types import Written
from accmt.data.batch_size import Sizes
from accmt.data.generators import Generators, keeps_state
from accmt.data.in_memory import is_ready
from accmt.data.iterable import Course, Stream
from accmt.data.rest_of_epoch import Rest, rest_of
from accmt.data.seeding import END, Indices, apart, fewer, has_state, mixed, read_apart
from accmt.data.user_loaders import check_workers, warn_of_differences
from accmt.data.worker_signals import outlast_signals
from accmt.notices import warn

# Samplers that draw from their own generator, which is seeded for every epoch, or do not draw.
SEEDED = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler, SequentialSampler, DistributedSampler)
_PLAIN = (*SEEDED, BatchSampler, list, tuple, range, type(None))
_SAMPLER = "sampler"


class Moment(Written):
    """State at a moment: at the start of an epoch, or at the position where it was taken."""

    generators: dict[str, Any]
    samplers: list[Any] | None


class ReaderState(Written):
    """Types of the state returned by `Reader.state`, for states read from a file."""

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
        reset: Seeds the samplers for the epoch; called each time before they start.
        skipped: Called once, before the first batch that is not skipped is loaded.
        state: The result of `Reader.state` there; None if unknown. At the start of an epoch, that of the end of the
            previous one.
        offset: The number of samples of all processes to skip before those batches (of batches, if a user's batch
            sampler makes them): a training resumed with other batches may start between two of them.
    """

    epoch: int
    seed: int
    skip: int
    reset: Callable[[], None]
    skipped: Callable[[], None]
    state: Mapping[str, Any] | None
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
        self._loader = copied(loader)
        self._sizes = Sizes(self._loader)
        self._draws = not is_ready(loader.dataset, loader.collate_fn)
        self._dataset: Any = loader.dataset
        self._process = process
        self._samplers = (*samplers, loader.batch_sampler)
        # True if there is a state that only the loader can get, from its workers.
        is_stream = isinstance(loader.dataset, IterableDataset)
        self._asks_workers = keeps_state(loader) and self.workers > 0 and (is_stream or has_state(loader.dataset))
        self._keeps_dataset = not is_stream and not self.workers and has_state(loader.dataset)
        self._indices: Indices | None = None
        self._course: Course | None = None
        self._rest: Rest | None = None
        draws = not all(map(_is_plain, self._samplers))
        if not is_stream:
            self._rest, batches = rest_of(loader)
            self._indices = _indices(loader, batches, draws, process, processes)
            vars(self._loader)["sampler" if loader.batch_sampler is None else "batch_sampler"] = self._indices
        elif processes > 1 or _has_course(loader):
            self._course = _course(loader, process, processes)
            vars(self._loader)["dataset"] = Stream(self._course)
        roots = {"dataset": loader.dataset, "collate_fn": loader.collate_fn}
        if draws:
            roots |= {f"{_SAMPLER}.{place}": sampler for place, sampler in enumerate(self._samplers)}
        self._generators = Generators(roots)
        self._start: dict[str, Any] = {}
        self._is_open = self._has_ended = self._are_compared = False
        self._reading: Callable[[], Any] = lambda: None

    @property
    def workers(self) -> int:
        """Number of worker processes that load batches."""
        return self._loader.num_workers

    @property
    def reads_from_anywhere(self) -> bool:
        """True if reading can start at any sample of an epoch, not only between two of its batches."""
        return self._rest is not None or (self._course is not None and not self.workers)

    def __len__(self) -> int:
        return len(self._loader)

    def length_after(self, offset: int) -> int:
        """Count this process's batches in an epoch without its first `offset` samples, counted as in `Place`."""
        if self._rest is not None:
            with self._rest.after(offset):
                return len(self)
        if self._course is None or not offset:
            return len(self)
        samples, size = self._course.length(offset), self._loader.batch_size or 1
        return samples // size if self._loader.drop_last else -(-samples // size)

    @property
    def length_of_epoch(self) -> int | None:
        """Number of batches of this process in the whole epoch being read; None if unknown."""
        try:
            return self.length_after(0)
        except TypeError:
            return None

    def read(self, place: Place) -> Iterator[tuple[int | None, Any]]:
        """Return the batches of an epoch from a position on, each with its number of samples, None if unknown."""
        seed = mixed(place.seed, place.epoch)
        generator = self._loader.generator
        assert generator is not None
        generator.manual_seed(seed)
        self._tell(place.epoch)
        moment = None if place.state is None else place.state["start" if place.is_within else "now"]
        if moment is not None:
            self._take_up(moment)
        # Samplers that have not started have no state to record, nor do those that were just restored.
        samplers = self._states_of_samplers() if moment is None and self._is_open else (moment or {}).get("samplers")
        self._start = {"generators": self._generators.states(), "samplers": samplers}
        if self._keeps_dataset and place.state is not None and place.state["dataset"] is not None:
            self._dataset.load_state_dict(place.state["dataset"])
        self._is_open, self._has_ended = True, False
        if self._rest is not None:
            self._rest.offset = place.offset
        if self._course is not None:
            batches = self._read_course(self._course, place, seed)
        elif self._indices is None:
            batches = self._read_through(place, seed)
        else:
            batches = self._read_indices(self._indices, place, seed)
        if self._indices is None and self.workers > 1 and not self._are_compared:
            batches = check_workers(batches, self.workers, "the training data", warn)
        self._are_compared = True
        return self._sizes.beside(batches, self._indices)

    def close(self) -> None:
        """Shut down the workers."""
        end_loader_workers(self._loader, self._reading())

    def finish(self, batches: Iterator[Any]) -> None:
        """Let objects that keep a state reach their end as well, after the last batch of an epoch."""
        if self._course is not None and not self.workers:
            with apart(1):
                self._course.finish()
        elif self._asks_workers:
            self._has_ended = next(batches, END) is END

    def state(self, *, at_end: bool) -> dict[str, Any]:
        """Return the state to resume reading from: within an epoch, or `at_end` from the start of the next."""
        state: dict[str, Any] = {"workers": self.workers, "loader": None, "dataset": None, "course": None}
        state["start"] = None if at_end else self._start
        state["now"] = {"generators": self._generators.states(), "samplers": None}
        if not self._is_open:
            return state
        if at_end:
            state["now"]["samplers"] = self._states_of_samplers()
        if self._keeps_dataset:
            state["dataset"] = copy.deepcopy(self._dataset.state_dict())
        if self._course is not None and not self.workers:
            state["course"] = copy.deepcopy(self._course.reading.state_dict())
        if self._asks_workers and (not at_end or (self._has_ended and self._loader.persistent_workers)):
            state["loader"] = copy.deepcopy(self._loader.state_dict())  # type: ignore[attr-defined]
        return state

    def changes(self, state: Mapping[str, Any]) -> list[str]:
        """Describe what keeps this reader from continuing exactly as the one that returned a state."""
        former, there, changes = state["workers"], dict(self._generators), []
        own = [name for name in there if name.split(".")[0] != _SAMPLER]
        draws_alike = bool(former and self.workers) or not (own or has_state(self._dataset))
        if former != self.workers and not (draws_alike and self._indices is not None):
            text = f"the training data were loaded by {former} worker(s) and are loaded by {self.workers} now"
            changes.append(f"{text}: what is drawn at random while they are loaded will not be the same")
        missing = [name for name in state["now"]["generators"] if name not in there]
        if missing:
            changes.append(f"random generators of the checkpoint are not there: {', '.join(missing)}")
        return changes

    def _tell(self, epoch: int) -> None:
        for part in (*self._samplers, *([] if self._course else [self._dataset])):
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)

    def _states_of_samplers(self) -> list[Any]:
        return [copy.deepcopy(sampler.state_dict()) if has_state(sampler) else None for sampler in self._samplers]

    def _take_up(self, moment: Mapping[str, Any]) -> None:
        """Restore samplers and generators to the states of the start of an epoch."""
        for sampler, former in zip(self._samplers, moment["samplers"] or (), strict=False):
            if former is not None and has_state(sampler):
                sampler.load_state_dict(former)
                # At the end of an epoch some restart on their own, others only once they are asked for more.
                with apart(1):
                    is_at_end = next(iter(sampler), END) is END
                if not is_at_end:
                    sampler.load_state_dict(former)
        self._generators.restore(moment["generators"])

    def _read_indices(self, indices: Indices, place: Place, seed: int) -> Iterator[Any]:
        state = self._state_of_loader(place)
        skip = place.skip if state is None else 0
        # Not a method: workers do not end in time if their loader is part of a reference cycle.
        indices.begin(seed, place.reset, skip, partial(_go_on, self._generators, place.state))
        if state is not None:
            self._loader.load_state_dict(state)  # type: ignore[attr-defined]
        batches = self._begin()
        if place.is_within and not skip:
            _go_on(self._generators, place.state)
        place.skipped()
        return indices.read_apart(batches) if self._draws and not self.workers else batches

    def _read_course(self, course: Course, place: Place, seed: int) -> Iterator[Any]:
        course.begin(place.seed, place.epoch)
        if self.workers:
            state = self._state_of_loader(place)
            if state is None:
                return self._read_through(place, seed)
            self._loader.load_state_dict(state)  # type: ignore[attr-defined]
            batches = self._begin()
            place.skipped()
            return batches
        state = None if place.state is None else place.state["course"]
        with apart(seed):
            if state is not None and place.is_within:
                course.resume(state)
            elif state is not None:
                course.carry_over(state)
            elif place.is_within:
                course.resume_after(place.skip, place.offset)
            batches = iter(self._loader)
        if place.is_within:
            _go_on(self._generators, place.state)
        place.skipped()
        return read_apart(batches, mixed(seed, self._process) + place.skip)

    def _read_through(self, place: Place, seed: int) -> Iterator[Any]:
        """Read the batches of a stream, including those that are skipped."""
        batches: Iterator[Any]
        if self.workers:
            batches = self._begin()
        else:
            with apart(seed):
                batches = iter(self._loader)
            batches = read_apart(batches, mixed(seed, self._process))
        passed = sum(1 for _ in islice(batches, place.skip))
        if passed < place.skip:
            raise fewer(place.skip, passed)
        place.skipped()
        return batches

    def _begin(self) -> Iterator[Any]:
        batches = iter(self._loader)
        self._reading = ref(batches)
        return batches

    def _state_of_loader(self, place: Place) -> Any:
        """Return the state for the loader; None if there is none, or it is that of another number of workers."""
        state = place.state
        if state is None or not self._asks_workers or state["workers"] != self.workers:
            return None
        return state["loader"]


def _go_on(generators: Generators, state: Mapping[str, Any] | None) -> None:
    """Restore generators after batches were skipped without being loaded; those of samplers have advanced already."""
    if state is not None:
        generators.restore(state["now"]["generators"], but=_SAMPLER)


def copied(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Return a loader of the same kind that has not started."""
    other = copy.copy(loader)
    other.generator = torch.Generator()
    vars(other).update({name: value for name, value in BEGUN_LOADER.items() if name in vars(other)})
    outlast_signals(other)
    return other


def _indices(loader: DataLoader[Any], batches: Any, draws: bool, process: int, processes: int) -> Indices:
    if processes > 1:
        share = _Turns if loader.batch_sampler is None else BatchSamplerShard
        batches = share(batches, processes, process)
    workers = loader.num_workers > 0
    return Indices(batches, apart=draws, for_workers=workers, process=process, processes=processes)


def _has_course(loader: DataLoader[Any]) -> bool:
    """Return whether a stream is read through a course: not if workers restart every epoch, which read it exactly as it
    is, and not if it is a data pipe, which is recognized by its type."""
    starts_anew = loader.num_workers > 0 and not loader.persistent_workers and not keeps_state(loader)
    return not starts_anew and not isinstance(loader.dataset, IterDataPipe)


def _course(loader: DataLoader[Any], process: int, processes: int) -> Course:
    course = Course(
        loader.dataset,
        loader.batch_size or 1,
        drop_last=loader.drop_last,
        process=process,
        processes=processes,
        for_workers=loader.num_workers > 0,
    )
    if processes > 1 and not loader.num_workers:
        course.seen = warn_of_differences
    return course


def _is_plain(sampler: Any) -> bool:
    return type(sampler) in _PLAIN or type(sampler).__module__.startswith("torchdata.")


class _Turns:
    """Every n-th index, where each index is a batch; the last round is padded from the start."""

    def __init__(self, indices: Iterable[Any], processes: int, process: int) -> None:
        self._indices, self._processes, self._process = indices, processes, process

    def __iter__(self) -> Iterator[Any]:
        indices, first = iter(self._indices), list[Any]()
        while round_ := list(islice(indices, self._processes)):
            first = first or round_
            yield (round_ + first * self._processes)[self._process]

    def __len__(self) -> int:
        return -(-len(self._indices) // self._processes)  # type: ignore[arg-type]  # a TypeError where they have none

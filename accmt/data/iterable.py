"""Streams: iterable datasets, read separately by each process, with a state that a checkpoint can hold."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from accmt._compat import examples_of
from accmt.data.seeding import END, draw_from, fewer, has_state, mixed

_BUFFER = "BufferShuffledExamplesIterable"
_UNREAD = {"read": 0, "ended": False, "dataset": None, "iterator": None}


class Stream(IterableDataset[Any]):
    """Iterable dataset as a loader reads it: its samples, or a process's shard of them, as read by a course.

    All other attributes are read from and set on the dataset, so that a worker can use the dataset that it finds in
    `get_worker_info().dataset` as usual.
    """

    _course: Course

    def __init__(self, course: Course) -> None:
        vars(self)["_course"] = course

    def __getattr__(self, name: str) -> Any:
        # The state is that of the reading, not of the dataset.
        if name.startswith("__") or name in ("_course", "state_dict", "load_state_dict"):
            raise AttributeError(f"'{type(self).__name__}' has no attribute '{name}'")
        return getattr(self._course.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._course.dataset, name, value)

    def __len__(self) -> int:
        return self._course.length()

    def __iter__(self) -> Iterator[Any]:
        return self._course.start()


class Course:
    """Reading of a stream, epoch by epoch.

    Every process reads all samples, in groups of `size` for each process, and keeps its part of each group. An
    incomplete last group is padded from its start, unless it is dropped. Random draws while a group is read depend on
    the seed, the epoch, the worker and the number of the group.

    The state of a reading is that of the dataset and of its iterator, if they have `state_dict` and `load_state_dict`
    and it is known to be complete; otherwise it is a number of samples, which are read again.

    Args:
        dataset: The iterable dataset.
        size: Samples per batch.
        drop_last: Drop an incomplete last group, if there are several processes.
        process, processes: Rank of this process, and the world size.
        for_workers: Workers read it.
    """

    def __init__(
        self,
        dataset: Any,
        size: int,
        *,
        drop_last: bool,
        process: int,
        processes: int,
        for_workers: bool,
    ) -> None:
        self.dataset = dataset
        self.group = size * processes
        self.uses_states = not _loses_samples(dataset)
        self.reading = _Reading(self)
        self._size, self._drop_last = size, drop_last
        self._process, self._processes = process, processes
        self._resumed: Any = None
        # Called once with the first group that this process reads, unless a worker reads it.
        self.seen: Callable[[list[Any]], None] | None = None
        # Seed and epoch. Workers that outlive an epoch learn of the next one only through shared memory.
        self._place = torch.zeros(2, dtype=torch.int64)
        if for_workers:
            self._place.share_memory_()  # type: ignore[no-untyped-call]
        self._told = 0

    @property
    def keeps_state(self) -> bool:
        """True if the dataset itself keeps a state that is used."""
        return self.uses_states and has_state(self.dataset)

    def begin(self, seed: int, epoch: int) -> None:
        """Set the epoch that is read next."""
        self._place[0], self._place[1] = seed, epoch
        self._tell(epoch)

    def start(self) -> _Reading:
        """Start reading the epoch, or resume where `resume` said."""
        self.reading = _Reading(self)
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            self.reading.load_state_dict(resumed)
        return self.reading

    def resume(self, state: Any) -> None:
        """Make the next reading resume from a state."""
        self._resumed = state

    def resume_after(self, batches: int, samples: int = 0) -> None:
        """Make the next reading resume after the first batches and samples of the epoch, which are read again."""
        self._resumed = {**_UNREAD, "read": batches * self.group + samples}

    def finish(self) -> None:
        """Let a dataset that keeps a state reach its end, as a loop over all of it would; one that is longer than its
        length stays where it is."""
        if self.keeps_state and not self.reading.ended:
            state = copy.deepcopy(self.dataset.state_dict())
            if not self.reading.is_at_end():
                self.dataset.load_state_dict(state)

    def carry_over(self, state: Any) -> None:
        """Restore a dataset that keeps a state to the end of the previous epoch."""
        if state["ended"]:
            _Reading(self).load_state_dict(state)
        elif state["dataset"] is not None:
            self.dataset.load_state_dict(state["dataset"])

    def length(self, offset: int = 0) -> int:
        """Return the number of samples of this process, without the first `offset` of all.

        Raises:
            TypeError: The dataset has no length.
        """
        samples = max(0, len(self.dataset) - offset)
        if self._processes == 1:
            return samples
        return self._size * (samples // self.group if self._drop_last else -(-samples // self.group))

    def share_of(self, group: list[Any]) -> list[Any]:
        """Return this process's part of a group of samples, which may be shorter at the end of the data."""
        if self._processes == 1 or not group:
            return group
        if len(group) < self.group:
            if self._drop_last:
                return []
            group = (group * self.group)[: self.group]
        start = self._process * self._size
        return group[start : start + self._size]

    def seed_of_reader(self) -> int:
        """Return the seed of the reader of the epoch: this process, or the worker that it is."""
        worker, (seed, epoch) = get_worker_info(), self._place.tolist()
        if epoch != self._told:
            self._tell(epoch)
        return mixed(seed, epoch, -1 if worker is None else worker.id)

    def _tell(self, epoch: int) -> None:
        self._told = epoch
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)


class _Reading:
    """One pass over a stream. It seeds the process-wide generators, so read it apart, or in a worker."""

    def __init__(self, course: Course) -> None:
        self._course = course
        self._seed = 1
        self._samples: Any = None
        self._share: deque[Any] = deque()
        self.read = 0
        self.ended = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if not self._share:
            self._share.extend(self._course.share_of(self._next_group()))
        if not self._share:
            raise StopIteration
        return self._share.popleft()

    def state_dict(self) -> dict[str, Any]:
        """Return the state to resume from, between two batches."""
        course, samples = self._course, self._samples
        state = {**_UNREAD, "read": self.read, "ended": self.ended}
        if samples is not None and course.uses_states:
            if has_state(course.dataset):
                state["dataset"] = course.dataset.state_dict()
            if samples is not course.dataset and has_state(samples):
                state["iterator"] = samples.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state.

        Raises:
            RuntimeError: The samples must be read again, and there are fewer now.
        """
        is_known = state["dataset"] is not None or state["iterator"] is not None
        if is_known and (state["dataset"] is None or has_state(self._course.dataset)):
            self._load(state)
            self.read = state["read"]
            # A dataset may be at its end only once it is asked for more, or restart once it has reached its end.
            if state["ended"] and not self.is_at_end():
                self._load(state)
        elif not state["ended"]:
            self._read_again(state["read"])
        self.ended = state["ended"]

    def is_at_end(self) -> bool:
        """Return whether there are no more samples; if there is one, it is lost."""
        self.ended = next(self._samples, END) is END
        return self.ended

    def _load(self, state: dict[str, Any]) -> None:
        dataset = self._course.dataset
        if state["dataset"] is not None:
            dataset.load_state_dict(state["dataset"])
        self._open()
        if self._samples is dataset:
            dataset.load_state_dict(state["dataset"])
        elif state["iterator"] is not None:
            self._samples.load_state_dict(state["iterator"])

    def _read_again(self, count: int) -> None:
        while self.read < count:
            if self._next_sample() is END:
                raise fewer(count // self._course.group, self.read // self._course.group)

    def _next_group(self) -> list[Any]:
        group: list[Any] = []
        while len(group) < self._course.group and (sample := self._next_sample()) is not END:
            group.append(sample)
        seen, self._course.seen = self._course.seen, None
        if seen is not None:
            seen(group)
        return group

    def _next_sample(self) -> Any:
        if self.ended:
            return END
        if self._samples is None:
            self._open()
        if self.read % self._course.group == 0:
            draw_from(self._seed + self.read // self._course.group)
        sample = next(self._samples, END)
        if sample is END:
            self.ended = True
        else:
            self.read += 1
        return sample

    def _open(self) -> None:
        self._seed = self._course.seed_of_reader()
        draw_from(self._seed - 1)
        self._samples = iter(self._course.dataset)


def _loses_samples(dataset: Any) -> bool:
    """Return whether a Hugging Face dataset shuffles its samples in a buffer, which its state does not hold."""
    if not type(dataset).__module__.startswith("datasets."):
        return False
    waiting, seen = [examples_of(dataset)], set[int]()
    while waiting:
        part = waiting.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        if type(part).__name__ == _BUFFER:
            return True
        inner = getattr(part, "__dict__", {})
        waiting += [inner.get("ex_iterable"), *(inner.get("ex_iterables") or ())]
    return False

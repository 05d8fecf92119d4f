"""Streams: iterable datasets, read separately by each process, with a state that a checkpoint can hold."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from accmt._compat import examples_of
from accmt.checkpoint.object_state import has_state
from accmt.data.seeding import END, apart, draw_from, fewer, mixed, restore_at_end
from accmt.data.user_loaders import warn_of_differences

_BUFFER = "BufferShuffledExamplesIterable"


class Stream(IterableDataset[Any]):
    """Iterable dataset as a loader reads it: seeded for each batch, and sharded across processes.

    Every process reads all samples, in groups of `size` for each process, and keeps its part of each group. An
    incomplete last group is padded from its start, unless it is dropped. Random draws while a group is read depend on
    the seed, the epoch, the worker and the number of the group.

    Args:
        loader: A loader of the dataset.
        process, processes: Rank of this process, and the world size.

    Attributes:
        offset: Number of samples of all processes that the length leaves out.
    """

    def __init__(self, loader: DataLoader[Any], process: int, processes: int) -> None:
        self.dataset: Any = loader.dataset
        self.offset = 0
        size, for_workers = loader.batch_size or 1, loader.num_workers > 0
        self.group = size * processes
        self._keeps_state = has_state(self.dataset) and not _loses_samples(self.dataset)
        self._is_sharded, self._drop_last = processes > 1, loader.drop_last
        self._share = slice(process * size, (process + 1) * size)
        self._compares = processes > 1 and not for_workers  # the first groups, once
        self._resumed: Mapping[str, Any] | None = None
        self._pass: _Pass | None = None
        # Seed and epoch. Workers that outlive an epoch learn of the next one only through shared memory.
        self._epoch = torch.zeros(2, dtype=torch.int64)
        if for_workers:
            self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    def begin(self, seed: int, epoch: int) -> None:
        """Set the epoch that is read next."""
        self._epoch[0], self._epoch[1] = seed, epoch
        self._resumed = None

    def resume(self, state: Mapping[str, Any] | None, batches: int, samples: int) -> None:
        """Resume in this process after the first batches and samples of the epoch: from the state there, or by reading
        them again. At the start of an epoch, the state is that of the end of the previous one."""
        if batches or samples:
            again = {"read": batches * self.group + samples, "ended": False, "dataset": None}
            self._resumed = again if state is None else state
        elif state is not None and state["dataset"] is not None:
            restore_at_end(self.dataset, state["dataset"])

    def __iter__(self) -> Iterator[Any]:
        worker, (seed, epoch) = get_worker_info(), self._epoch.tolist()
        if worker is not None and hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        self._pass = _Pass(self, mixed(seed, epoch, -1 if worker is None else worker.id))
        if self._resumed is not None:
            self._pass.load_state_dict(self._resumed)
        return self._pass

    def __len__(self) -> int:
        """Return the number of samples of this process, without the first `offset` of all.

        Raises:
            TypeError: The dataset has no length.
        """
        samples = max(0, len(self.dataset) - self.offset)
        if not self._is_sharded:
            return samples
        size = self._share.stop - self._share.start
        return size * (samples // self.group if self._drop_last else -(-samples // self.group))

    def state(self) -> dict[str, Any] | None:
        """Return the state of the present pass, between two batches; None before the first."""
        return None if self._pass is None else self._pass.state_dict()

    def finish(self) -> None:
        """Let a dataset that keeps a state reach its end, as a loop over all of it would; one with more samples than
        its length stays at its position."""
        if self._pass is not None and self._keeps_state and not self._pass.ended:
            state = copy.deepcopy(self.dataset.state_dict())
            with apart(1):
                if not self._pass.is_at_end():
                    self.dataset.load_state_dict(state)

    def state_of_dataset(self) -> Any:
        """Return the state of the dataset; None if it keeps none, or an incomplete one."""
        return self.dataset.state_dict() if self._keeps_state else None

    def share_of(self, group: list[Any]) -> list[Any]:
        """Return this process's part of a group of samples, which may be shorter at the end of the data."""
        if self._compares:
            self._compares = False
            warn_of_differences(group)
        if not self._is_sharded or not group:
            return group
        if len(group) < self.group:
            group = [] if self._drop_last else (group * self.group)[: self.group]
        return group[self._share]


class _Pass:
    """One pass over a stream. It seeds the process-wide generators, so read it apart, or in a worker."""

    def __init__(self, stream: Stream, seed: int) -> None:
        self._stream, self._seed = stream, seed
        self._samples: Any = None
        self._share: deque[Any] = deque()
        self.read = 0
        self.ended = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if not self._share:
            self._share.extend(self._stream.share_of(self._next_group()))
        if not self._share:
            raise StopIteration
        return self._share.popleft()

    def state_dict(self) -> dict[str, Any]:
        """Return the state to resume from, between two batches."""
        has_begun = self._samples is not None or self.ended
        dataset = self._stream.state_of_dataset() if has_begun else None
        return {"read": self.read, "ended": self.ended, "dataset": dataset}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state, or read the samples again if that of the dataset is unknown.

        Raises:
            RuntimeError: The samples must be read again, and there are fewer now.
        """
        dataset, former = self._stream.dataset, state["dataset"]
        if former is None or not has_state(dataset):
            self._read_again(0 if state["ended"] else state["read"])
        elif state["ended"]:
            restore_at_end(dataset, former)
        else:
            dataset.load_state_dict(former)
            self._open()
            if self._samples is dataset:  # which has just restarted
                dataset.load_state_dict(former)
        self.read, self.ended = state["read"], state["ended"]

    def is_at_end(self) -> bool:
        """Return whether there are no more samples; if there is one, it is lost."""
        self.ended = next(self._samples, END) is END
        return self.ended

    def _next_group(self) -> list[Any]:
        group: list[Any] = []
        while len(group) < self._stream.group and (sample := self._next_sample()) is not END:
            group.append(sample)
        return group

    def _read_again(self, count: int) -> None:
        while self.read < count:
            if self._next_sample() is END:
                raise fewer(count // self._stream.group, self.read // self._stream.group)

    def _next_sample(self) -> Any:
        if self._samples is None and not self.ended:
            self._open()
        if not self.ended and self.read % self._stream.group == 0:
            draw_from(self._seed + self.read // self._stream.group)
        sample = END if self.ended else next(self._samples, END)
        self.ended = sample is END
        self.read += not self.ended
        return sample

    def _open(self) -> None:
        draw_from(self._seed - 1)
        self._samples = iter(self._stream.dataset)


def show_dataset(then: Callable[[int], None] | None, worker: int) -> None:
    """Begin a worker that finds the dataset that the user gave, not its `Stream`, in `get_worker_info()`."""
    info: Any = get_worker_info()
    object.__setattr__(info, "dataset", info.dataset.dataset)  # its own method refuses to
    if then is not None:
        then(worker)


def _loses_samples(dataset: Any) -> bool:
    """Return whether a Hugging Face dataset shuffles its samples in a buffer, which its state does not hold."""
    return type(dataset).__module__.startswith("datasets.") and _has_buffer(examples_of(dataset))


def _has_buffer(part: Any) -> bool:
    inner = getattr(part, "__dict__", {})
    parts = [inner.get("ex_iterable"), *(inner.get("ex_iterables") or ())]
    return type(part).__name__ == _BUFFER or any(_has_buffer(each) for each in parts if each is not None)

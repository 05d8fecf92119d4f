"""Exact means of intervals, over all processes, without reading the device at every step: the training loss, the
metrics that a module logs, and the loss of a validation dataset. A checkpoint holds the sums bit by bit."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import PartialState
from torch import Tensor
from torch import distributed as dist

from accmt.rules.codec import Count, from_plain_at, from_text, to_text

_UNIT = "samples"
_CPU = torch.device("cpu")


class RunningSum:
    """Weighted sum of values, in double precision where the device has it, and the sum of the weights.

    It is a tensor on the device, because to read it is to wait for the device; on the CPU it is a number.
    """

    __slots__ = ("_device", "total", "weight")

    def __init__(self, device: torch.device = _CPU) -> None:
        self._device = device
        self.load_state_dict((0.0, 0))

    def add(self, value: Tensor | float, weight: int = 1) -> None:
        """Add a number, or a scalar on the device."""
        if isinstance(value, Tensor):
            value = value.detach()
        if isinstance(self.total, Tensor):
            self.total.add_(value, alpha=weight)
        else:
            self.total += weight * (value.item() if isinstance(value, Tensor) else value)
        self.weight += weight

    def clear(self) -> None:
        self.load_state_dict((0.0, 0))

    def state_dict(self) -> list[float | str]:
        return [to_text(float(self.total)), self.weight]

    def load_state_dict(self, state: Sequence[Any]) -> None:
        self.total: Tensor | float = from_text(state[0])
        if self._device.type != "cpu":
            dtype = torch.float32 if self._device.type == "mps" else torch.float64
            self.total = torch.full((), self.total, dtype=dtype, device=self._device)
        self.weight = int(state[1])


def taken(sums: Sequence[RunningSum]) -> list[tuple[float, int]]:
    """Return the totals and the weights of sums over all processes, and set the sums to zero."""
    numbers = (each.total for each in sums)
    totals = torch.stack([n if isinstance(n, Tensor) else torch.tensor(n, dtype=torch.float64) for n in numbers])
    both = torch.stack([totals, torch.tensor([each.weight for each in sums]).to(totals)])
    if PartialState().num_processes > 1:
        dist.all_reduce(both)
    for each in sums:
        each.clear()
    return [(total, int(weight)) for total, weight in zip(*both.tolist(), strict=True)]


def mean_of(total: float, weight: int) -> float:
    """Return a mean; NaN if there was nothing."""
    return total / weight if weight else math.nan


@dataclass(frozen=True, slots=True)
class _Losses:
    unit: Literal["samples"]
    sum: float
    count: Count
    log: tuple[float, Count]
    evaluation: tuple[float, Count]


class LossMeter:
    """Mean training losses, weighted by samples, of two intervals: that of logging, and that of evaluations.

    Args:
        device: The device of this process.
        looks: Keep the interval of looks too, in its own sum, so that looks do not affect the rounding of the others.
    """

    def __init__(self, device: torch.device, *, looks: bool = False) -> None:
        self._sum = RunningSum(device)
        self._look = RunningSum(device) if looks else None
        # Over all processes, up to the last reading of the sum.
        self._log, self._evaluation = RunningSum(), RunningSum()

    def add(self, loss: Tensor, samples: int = 1) -> None:
        """Add the mean loss of a batch of `samples` samples."""
        self._sum.add(loss, samples)
        if self._look is not None:
            self._look.add(loss, samples)

    def since_look(self) -> float:
        """Return the mean loss since the last call, over all processes; NaN if there was no sample."""
        return math.nan if self._look is None else mean_of(*taken([self._look])[0])

    def since_log(self) -> float:
        """Return the mean loss since the last call, over all processes; NaN if there was no sample."""
        return self._since(self._log)

    def since_evaluation(self) -> float:
        """Return the mean loss since the last call, over all processes; NaN if there was no sample."""
        return self._since(self._evaluation)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of this process."""
        total, count = self._sum.state_dict()
        intervals = {"log": self._log.state_dict(), "evaluation": self._evaluation.state_dict()}
        return {"unit": _UNIT, "sum": total, "count": count, **intervals}

    def check(self, state: Any) -> None:
        """Check that it is a state of losses."""
        from_plain_at("losses", _Losses, state)

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Restore the sums."""
        self._sum.load_state_dict((state["sum"], state["count"]))
        self._log.load_state_dict(state["log"])
        self._evaluation.load_state_dict(state["evaluation"])
        return []

    def _since(self, interval: RunningSum) -> float:
        [(total, count)] = taken([self._sum])
        for each in (self._log, self._evaluation):
            each.total += total
            each.weight += count
        mean = mean_of(float(interval.total), interval.weight)
        interval.clear()
        return mean


class TrainingMetrics:
    """Means of what a module logs under names that rules may use, of two intervals: that of evaluations, and of looks.

    For each name and batch the last value counts, so that a step that is retried, or evaluated several times, counts
    once.

    Args:
        names: The declared names.
        device: The device of this process.
    """

    def __init__(self, names: Collection[str], device: torch.device) -> None:
        self.names = tuple(names)
        self._pending: dict[tuple[int, str], Tensor | float] = {}
        self._evaluation, self._look = ({name: RunningSum(device) for name in names} for _ in range(2))

    def add(self, name: str, value: Tensor | float, batch: int, reduction: str) -> None:
        """Record a value logged for a batch. A tensor counts on each process, another value on the main one only."""
        state = PartialState()
        if isinstance(value, Tensor):
            scale = state.num_processes if reduction == "sum" else 1
            # A copy: the module may change its own.
            self._pending[batch, name] = value.detach().reshape(()) * scale
        elif state.is_main_process:
            self._pending[batch, name] = float(value)

    def commit(self) -> None:
        """Count the values logged for the batches of a completed step."""
        if self._pending:
            for (_, name), value in self._pending.items():
                self._evaluation[name].add(value)
                self._look[name].add(value)
            self._pending.clear()

    def since_evaluation(self) -> dict[str, float]:
        """Return name -> mean since the last call, over all processes, without names that were not logged."""
        return self._since(self._evaluation)

    def since_look(self) -> dict[str, float]:
        """Return name -> mean since the last call, over all processes, without names that were not logged."""
        return self._since(self._look)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of this process since the previous evaluation."""
        self.commit()
        return {name: each.state_dict() for name, each in self._evaluation.items()}

    def check(self, state: Any) -> None:
        """Check that it is a state of training metrics."""
        from_plain_at("training", dict[str, tuple[float, Count]], state)

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Restore the sums of the names that are still declared."""
        for name in self._evaluation.keys() & state.keys():
            self._evaluation[name].load_state_dict(state[name])
        return []

    def _since(self, sums: Mapping[str, RunningSum]) -> dict[str, float]:
        self.commit()
        found = zip(sums, taken([*sums.values()]), strict=True) if sums else ()
        return {name: total / count for name, (total, count) in found if count}

"""The mean training loss of an interval over its samples, without reading the device at every step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import PartialState
from torch import Tensor
from torch import distributed as dist

from accmt.rules.codec import Count, from_plain_at, from_text, to_text

_UNIT = "samples"


@dataclass(frozen=True, slots=True)
class _State:
    unit: Literal["samples"]
    sum: float
    count: Count
    log: tuple[float, Count]
    evaluation: tuple[float, Count]


class LossMeter:
    """Sum of losses on the device, read only at the end of an interval: that of logging, and that of evaluations.

    The sums are exact across a resume: a checkpoint holds those on the device bit by bit.

    Args:
        device: The device of this process.
        looks: Keep the interval of looks too, in its own sum, so that looks do not affect the rounding of the others.
    """

    def __init__(self, device: torch.device, *, looks: bool = False) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sum = torch.zeros((), dtype=dtype, device=device)
        self._count = 0
        self._looked = torch.zeros_like(self._sum) if looks else None
        self._looked_count = 0
        self._log = _IntervalLoss()
        self._evaluation = _IntervalLoss()

    def add(self, loss: Tensor, samples: int = 1) -> None:
        """Add the mean loss of a batch of `samples` samples."""
        self._sum.add_(loss.detach().to(self._sum.dtype), alpha=samples)
        self._count += samples
        if self._looked is not None:
            self._looked.add_(loss.detach().to(self._sum.dtype), alpha=samples)
            self._looked_count += samples

    def since_look(self) -> float:
        """Return the mean loss since the last call, over all processes; NaN if there was no sample."""
        if self._looked is None:
            return math.nan
        total, count = _over_processes(self._looked, self._looked_count)
        self._looked.zero_()
        self._looked_count = 0
        return total / count if count else math.nan

    def since_log(self) -> float:
        """Return the mean loss since the last call, over all processes; NaN if there was no sample."""
        self._read()
        return self._log.take()

    def since_evaluation(self) -> float:
        """Return the mean loss since the last call, over all processes; NaN if there was no sample."""
        self._read()
        return self._evaluation.take()

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of this process."""
        return {
            "unit": _UNIT,
            "sum": to_text(self._sum.item()),
            "count": self._count,
            "log": self._log.state_dict(),
            "evaluation": self._evaluation.state_dict(),
        }

    def check(self, state: Any) -> None:
        """Check that it is a state of losses."""
        from_plain_at("losses", _State, state)

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Restore the sums."""
        self._sum.fill_(from_text(state["sum"]))
        self._count = state["count"]
        self._log.load_state_dict(state["log"])
        self._evaluation.load_state_dict(state["evaluation"])
        return []

    def _read(self) -> None:
        total, count = _over_processes(self._sum, self._count)
        self._log.add(total, count)
        self._evaluation.add(total, count)
        self._sum.zero_()
        self._count = 0


def _over_processes(total: Tensor, count: int) -> tuple[float, int]:
    """Return a sum of losses and the number of its samples, over all processes."""
    if PartialState().num_processes == 1:
        return total.item(), count
    sums = torch.stack([total, torch.full_like(total, count)])
    dist.all_reduce(sums)
    return sums[0].item(), int(sums[1].item())


class _IntervalLoss:
    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, total: float, count: int) -> None:
        self._sum += total
        self._count += count

    def take(self) -> float:
        mean = self._sum / self._count if self._count else math.nan
        self._sum, self._count = 0.0, 0
        return mean

    def state_dict(self) -> list[float | str]:
        return [to_text(self._sum), self._count]

    def load_state_dict(self, data: list[Any]) -> None:
        self._sum, self._count = from_text(data[0]), data[1]

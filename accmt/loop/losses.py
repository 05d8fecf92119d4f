"""The mean training loss of an interval over its samples, without reading the device at every step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from torch import distributed as dist

from accmt.rules.codec import count_from, from_text, to_text

_UNIT = "samples"


class LossMeter:
    """Sum of losses on the device, read only at the end of an interval: that of logging, and that of evaluations.

    The sums are exact across a resume: a checkpoint holds those on the device bit by bit.
    """

    def __init__(self, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sum = torch.zeros((), dtype=dtype, device=device)
        self._count = 0
        self._looked: Tensor | None = None
        self._looked_count = 0
        self._log = _Interval()
        self._evaluation = _Interval()

    def add(self, loss: Tensor, samples: int = 1) -> None:
        """Add the mean loss of a batch of `samples` samples."""
        self._sum.add_(loss.detach().to(self._sum.dtype), alpha=samples)
        self._count += samples
        if self._looked is not None:
            self._looked.add_(loss.detach().to(self._sum.dtype), alpha=samples)
            self._looked_count += samples

    def watch(self) -> None:
        """Track an interval of looks too, in its own sum, so that looks do not affect the rounding of the others."""
        self._looked = torch.zeros_like(self._sum)

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

    def to_json(self) -> dict[str, Any]:
        return {
            "unit": _UNIT,
            "sum": to_text(self._sum.item()),
            "count": self._count,
            "log": self._log.to_json(),
            "evaluation": self._evaluation.to_json(),
        }

    def restore(self, data: Mapping[str, Any], batch_size: int = 1) -> None:
        """Restore the result of `to_json`. Earlier checkpoints counted batches, each of `batch_size`, not samples."""
        scale = 1 if data.get("unit") == _UNIT else batch_size
        self._sum.fill_(from_text(data["sum"]) * scale)
        self._count = count_from(data["count"]) * scale
        self._log.restore(data["log"], scale)
        self._evaluation.restore(data["evaluation"], scale)

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


class _Interval:
    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, total: float, count: int) -> None:
        self._sum += total
        self._count += count

    def take(self) -> float:
        mean = self._sum / self._count if self._count else math.nan
        self._sum, self._count = 0.0, 0
        return mean

    def to_json(self) -> list[float | str]:
        return [to_text(self._sum), self._count]

    def restore(self, data: list[float | str], scale: int) -> None:
        self._sum, self._count = from_text(data[0]) * scale, count_from(data[1]) * scale

"""The mean training loss of an interval, without reading the device at every step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from torch import distributed as dist

from accmt.rules.jsonable import count_from, from_text, to_text


class LossMeter:
    """Adds up losses on the device and reads them when an interval ends: that of logging, and that of evaluations.

    The sums are exact over a resume: what is on the device is part of a checkpoint, bit by bit.
    """

    def __init__(self, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sum = torch.zeros((), dtype=dtype, device=device)
        self._count = 0
        self._looked: Tensor | None = None
        self._looked_count = 0
        self._log = _Interval()
        self._evaluation = _Interval()

    def add(self, loss: Tensor) -> None:
        """Count the loss of a batch."""
        self._sum += loss.detach()
        self._count += 1
        if self._looked is not None:
            self._looked += loss.detach()
            self._looked_count += 1

    def watch(self) -> None:
        """Keep an interval of looks as well: a sum of its own, so that they change no rounding of the others."""
        self._looked = torch.zeros_like(self._sum)

    def since_look(self) -> float:
        """The mean loss since this was last asked, over all processes; NaN if there was no batch."""
        if self._looked is None or self._looked_count == 0:
            return math.nan
        if PartialState().num_processes > 1:
            dist.all_reduce(self._looked)
        mean: float = self._looked.item() / (self._looked_count * PartialState().num_processes)
        self._looked.zero_()
        self._looked_count = 0
        return mean

    def since_log(self) -> float:
        """The mean loss since this was last asked, over all processes; NaN if there was no batch."""
        self._read()
        return self._log.take()

    def since_evaluation(self) -> float:
        """The mean loss since this was last asked, over all processes; NaN if there was no batch."""
        self._read()
        return self._evaluation.take()

    def to_json(self) -> dict[str, Any]:
        return {
            "sum": to_text(self._sum.item()),
            "count": self._count,
            "log": self._log.to_json(),
            "evaluation": self._evaluation.to_json(),
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        self._sum.fill_(from_text(data["sum"]))
        self._count = count_from(data["count"])
        self._log.restore(data["log"])
        self._evaluation.restore(data["evaluation"])

    def _read(self) -> None:
        if self._count == 0:
            return
        if PartialState().num_processes > 1:
            dist.all_reduce(self._sum)
        total, count = self._sum.item(), self._count * PartialState().num_processes
        self._log.add(total, count)
        self._evaluation.add(total, count)
        self._sum.zero_()
        self._count = 0


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

    def restore(self, data: list[float | str]) -> None:
        self._sum, self._count = from_text(data[0]), count_from(data[1])

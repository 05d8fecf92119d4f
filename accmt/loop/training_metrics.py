"""Means of training metrics: what a module logs under names that rules may use."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from torch import distributed as dist

from accmt.rules.codec import Count, from_plain_at, from_text, to_text


class TrainingMetrics:
    """Sums of logged values on the device, read only at the end of an interval: of evaluations, and of looks.

    For each name and batch the last value counts, so that a step that is retried, or evaluated several times, counts
    once. Like those of the losses, the sums are exact across a resume.

    Args:
        names: The declared names.
        device: The device of this process.
    """

    def __init__(self, names: Collection[str], device: torch.device) -> None:
        self.names = tuple(names)
        self._pending: dict[tuple[int, str], Tensor | float] = {}
        self._evaluation, self._look = (_Interval(self.names, device) for _ in range(2))

    def add(self, name: str, value: Tensor | float, batch: int, reduction: str) -> None:
        """Record a value logged for a batch. A tensor counts on each process, another value on the main one only."""
        state = PartialState()
        if isinstance(value, Tensor):
            scale = state.num_processes if reduction == "sum" else 1
            self._pending[batch, name] = value.detach() * scale  # a copy: the module may change its own
        elif state.is_main_process:
            self._pending[batch, name] = float(value)

    def commit(self) -> None:
        """Count the values logged for the batches of a completed step."""
        for (_, name), value in self._pending.items():
            self._evaluation.add(name, value)
            self._look.add(name, value)
        self._pending.clear()

    def since_evaluation(self) -> dict[str, float]:
        """Return name -> mean since the last call, over all processes, without names that were not logged."""
        self.commit()
        return self._evaluation.take()

    def since_look(self) -> dict[str, float]:
        """Return name -> mean since the last call, over all processes, without names that were not logged."""
        self.commit()
        return self._look.take()

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of this process since the previous evaluation."""
        self.commit()
        return self._evaluation.state_dict()

    def check(self, state: Any) -> None:
        """Check that it is a state of training metrics."""
        from_plain_at("training", dict[str, tuple[float, Count]], state)

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Restore the sums of the names that are still declared."""
        self._evaluation.load_state_dict(state)
        return []


class _Interval:
    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sums = {name: torch.zeros((), dtype=dtype, device=device) for name in names}
        self._counts = dict.fromkeys(names, 0)

    def add(self, name: str, value: Tensor | float) -> None:
        self._sums[name] += value.reshape(()) if isinstance(value, Tensor) else value
        self._counts[name] += 1

    def take(self) -> dict[str, float]:
        if not self._sums:
            return {}
        sums = torch.stack(list(self._sums.values()))
        totals = torch.stack([sums, torch.tensor(list(self._counts.values())).to(sums)])
        if PartialState().num_processes > 1:
            dist.all_reduce(totals)
        means = {name: total / count for name, total, count in zip(self._sums, *totals.tolist(), strict=True) if count}
        for name, total in self._sums.items():
            total.zero_()
            self._counts[name] = 0
        return means

    def state_dict(self) -> dict[str, Any]:
        return {name: [to_text(total.item()), self._counts[name]] for name, total in self._sums.items()}

    def load_state_dict(self, data: Mapping[str, Any]) -> None:
        for name, (total, count) in data.items():
            if name in self._sums:
                self._sums[name].fill_(from_text(total))
                self._counts[name] = int(count)

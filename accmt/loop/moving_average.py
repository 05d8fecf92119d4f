"""Exponential moving average of the trained weights, which evaluations and saved models use instead of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import is_not
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

_LOW = (torch.float16, torch.bfloat16)


class MovingAverage:
    """Exponential moving average of the parameters that an optimizer trains, as a part of a checkpoint.

    It is that of `torch.optim.swa_utils`: the weights after the first step, then at each step
    `decay * average + (1 - decay) * weights`. Averages of 16-bit weights are kept in float32, which resolves such
    differences. Parameters that are never trained have none, and buffers stay those of the model.

    Args:
        decay: The decay, between 0 and 1.
        named: Returns all parameters by name.
    """

    adapts = True
    """It is restored from any checkpoint; without an average in it, the average starts from the weights there."""

    def __init__(self, decay: float, named: Callable[[], Mapping[str, Tensor]]) -> None:
        self._named = named
        self._average: Callable[..., None] = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._averages: dict[str, Tensor] = {}
        self._weights: list[Tensor] = []
        self._held: Sequence[nn.Parameter] = ()

    def update(self, held: Sequence[nn.Parameter]) -> None:
        """Average the weights after an optimizer step, of the parameters that the optimizer holds now and before."""
        if len(held) != len(self._held) or any(map(is_not, held, self._held)):
            self._look(held)
        groups: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
        for average, weight in zip(self._averages.values(), self._weights, strict=True):
            averages, weights = groups.setdefault((average.device, average.dtype), ([], []))
            averages.append(average)
            weights.append(weight.to(average.dtype))
        for averages, weights in groups.values():
            self._average(averages, weights, 0)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the parameters their averages in the block, and their trained weights back afterwards."""
        self._look(self._held)
        # Through `data`, because the version of a parameter tells whether a step has changed it.
        weights = [weight.data for weight in self._weights]
        trained = [weight.clone() for weight in weights]
        try:
            for weight, average in zip(weights, self._averages.values(), strict=True):
                weight.copy_(average)
            yield
        finally:
            for weight, value in zip(weights, trained, strict=True):
                weight.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages by the name of their parameter."""
        return {"averages": dict(self._averages)}

    def problems(self, state: Any) -> list[str]:
        """List where a state is not one of these parameters, one line each."""
        averages, named = state["averages"], self._named()
        return [
            f"the moving average of {name} does not fit its parameter"
            for name, value in averages.items()
            if not isinstance(value, Tensor) or (name in named and value.shape != named[name].shape)
        ]

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Restore the averages; None for none."""
        self._averages = {} if state is None else dict(state["averages"])
        self._held = ()

    def _look(self, held: Sequence[nn.Parameter]) -> None:
        """Look up the parameters: new ones start from their weights, and those that no longer exist are dropped."""
        trained, averages, self._weights = set(map(id, held)), self._averages, []
        self._averages, self._held = {}, held
        for name, weight in self._named().items():
            if name in averages and averages[name].shape == weight.shape:
                self._averages[name] = averages[name].to(weight.device)
            elif id(weight) in trained:
                dtype = torch.float32 if weight.dtype in _LOW else weight.dtype
                self._averages[name] = weight.detach().to(dtype, copy=True)
            else:
                continue
            self._weights.append(weight.detach())

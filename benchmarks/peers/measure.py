"""The clock and the counter that every contestant is measured with.

Neither asks the library anything: the first step is seen by a hook on the model, the optimizer's steps by a hook of
torch on all optimizers. They cost every contestant the same, well under a microsecond a step.

    with Measurement(model) as measurement:
        trainer.fit(...)
    return measurement.run(dataset)
"""

from time import perf_counter
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import TensorDataset

from . import Run
from .task import dataset_loss


class Measurement:
    """Times the `with` block and counts the optimizer steps taken in it."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._called = self._first_forward = self._returned = float("nan")
        self._steps = 0
        self._first_gradient_norm = float("nan")

    def __enter__(self) -> "Measurement":
        self._forward_hook = self._model.register_forward_pre_hook(self._at_first_forward)
        self._step_hook = register_optimizer_step_post_hook(self._after_step)
        self._called = perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._returned = perf_counter()
        self._forward_hook.remove()
        self._step_hook.remove()

    def run(self, dataset: TensorDataset) -> Run:
        return Run(
            seconds=self._returned - self._first_forward,
            fit_seconds=self._returned - self._called,
            final_loss=dataset_loss(self._model, dataset),
            optimizer_steps=self._steps,
            first_gradient_norm=self._first_gradient_norm,
        )

    def _at_first_forward(self, module: nn.Module, inputs: object) -> None:
        self._first_forward = perf_counter()
        self._forward_hook.remove()

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._steps += 1
        if self._steps == 1:
            gradients = [parameter.grad for parameter in self._model.parameters() if parameter.grad is not None]
            self._first_gradient_norm = torch.nn.utils.get_total_norm(gradients).item()

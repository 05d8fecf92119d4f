"""Learning rate range test: a short training at a growing rate, which shows the range where the loss falls.

Smith, "Cyclical learning rates for training neural networks", 2017 (arXiv:1506.01186, 2015).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from accmt.checkpoint.rng import untouched_random_state
from accmt.config.errors import ConfigError, Problem
from accmt.data.generators import generators_of
from accmt.data.loaders import TrainingData, Window
from accmt.distributed.collective import agreed
from accmt.distributed.process_group import leave_side_groups
from accmt.distributed.strategy import PLAIN
from accmt.loop.hooks import Hooks
from accmt.loop.restored_objects import untouched
from accmt.module import AcceleratorModule, ExtendedAcceleratorModule
from accmt.rules import CadenceRule
from accmt.setup.build import stepper_of
from accmt.setup.inputs import check_fit
from accmt.setup.model import lent, prepare
from accmt.setup.options import Options, RuleOptions
from accmt.setup.plan import Plan, plan
from accmt.states import TrainingState
from accmt.tracking.tracker import NoTracker

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class RangeTest:
    """The range of rates and the number of steps; the loss is smoothed by a moving average that weights its past by
    `smoothing`, and diverges when it exceeds `divergence` times its lowest value."""

    min_lr: float
    max_lr: float
    steps: int
    smoothing: float
    divergence: float

    def check(self) -> None:
        """Check the values.

        Raises:
            ValueError: One of them is out of its range.
        """
        if not 0 < self.min_lr < self.max_lr < math.inf:
            raise ValueError(f"min_lr is {self.min_lr} and max_lr {self.max_lr}: they must be positive and increase")
        if not isinstance(self.steps, int) or self.steps < 2:
            raise ValueError(f"steps is {self.steps!r}: it must be a whole number from 2")
        if not 0 <= self.smoothing < 1 or not self.divergence > 1:
            text = f"smoothing is {self.smoothing} and divergence {self.divergence}"
            raise ValueError(f"{text}: they must be from 0 to below 1, and above 1")

    def rate(self, step: int) -> float:
        """Return the rate of a step, from 0 on."""
        return float(self.min_lr * (self.max_lr / self.min_lr) ** (step / (self.steps - 1)))


@dataclass(frozen=True, slots=True)
class LearningRateCurve:
    """Result of a learning rate range test.

    Attributes:
        rates: The learning rate of each step.
        losses: The mean loss of each step, before its update.
        smoothed: The moving averages of the losses, without the bias towards their start.
        diverged: The test ended early, because the loss diverged.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    diverged: bool

    @property
    def suggestion(self) -> float | None:
        """The rate at which the smoothed loss falls most steeply per factor of the rate; None if it never falls."""
        known = [value for value in self.smoothed if math.isfinite(value)]
        slopes = np.gradient(known) if len(known) > 1 else np.zeros(1)
        return self.rates[int(slopes.argmin())] if slopes.min() < 0 else None

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the losses over the rates, and the suggestion.

        Args:
            path: Where to save the picture; its ending names the format.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError("a picture needs matplotlib: pip install 'accmt[plot]'") from None
        figure = Figure()
        axes = figure.add_subplot(xscale="log", xlabel="learning rate", ylabel="training loss")
        axes.plot(self.rates, self.losses, alpha=0.3, label="of each step")
        axes.plot(self.rates, self.smoothed, label="smoothed")
        if self.suggestion is not None:
            axes.axvline(self.suggestion, linestyle="--", label=f"suggestion {self.suggestion:.2g}")
        axes.legend()
        if path is not None:
            figure.savefig(Path(path).expanduser())
        return figure


def find_rates(
    options: Options, module: AcceleratorModule, dataset: Dataset[Any] | None, test: RangeTest
) -> LearningRateCurve:
    """Train a module at a growing rate, and restore it.

    Raises:
        ConfigError: The training is not possible, or its state could not be restored.
    """
    test.check()
    plain = RuleOptions((), CadenceRule.parse("epoch"), (), None)
    hps = replace(options.hps, scheduler=None, scheduler_kwargs={})
    options = replace(
        options,
        hps=hps,
        rules=plain,
        checkpoint=replace(options.checkpoint, every=None, resume=False, on_exception=False, in_background=False),
        loop=replace(options.loop, followed=None),
        callbacks=(),
    )
    check_fit(options, module, dataset, None)
    if isinstance(module, ExtendedAcceleratorModule):
        text = f"{type(module).__name__} makes its optimizer steps itself: their rates cannot be set"
        raise ConfigError([Problem("module", text)], "find_lr(...)")
    if isinstance(dataset, Iterator):
        text = "is an iterator: what is read from it would be missing in the training"
        raise ConfigError([Problem("train_dataset", text)], "find_lr(...)")
    with ExitStack() as stack:
        stack.enter_context(lent(module))
        stack.enter_context(_unscheduled(module))
        made = plan(options, Path(), (), module, dataset, {})
        stack.callback(leave_side_groups)
        stack.callback(made.accelerator.free_memory)
        stack.callback(made.close)
        if made.accelerator.distributed_type not in PLAIN:
            text = f"its weights could not be restored with {made.accelerator.distributed_type.value}"
            raise ConfigError([Problem("module", f"{text}: run the test without it")], "find_lr(...)")
        stack.enter_context(_restored(made))
        return _tested(made, test)


def _tested(made: Plan, test: RangeTest) -> LearningRateCurve:
    """Train step by step until the last rate, or until the loss diverges."""
    module, accelerator, options = made.module, made.accelerator, made.options
    module.tracker, module.state = NoTracker(), TrainingState()
    module.device, module.accelerator = accelerator.device, accelerator
    groups = made.optimizer.param_groups
    ratios = [group.get("lr") for group in groups]
    if not all(ratios):
        text = "the optimizer has no positive learning rate of its own, which would be scaled: give it one"
        raise ConfigError([Problem("lr", text)], "find_lr(...)")
    prepared = prepare(module, made.optimizer, options.model, through_wrapper=options.step.through_wrapper)
    stepper = stepper_of(made, prepared, Hooks((), module.state), looks=False)
    losses: list[float] = []
    smoothed: list[float] = []
    average, diverged = 0.0, False
    for step, window in zip(range(test.steps), _windows(made.data, module.state), strict=False):
        for group, own in zip(prepared.optimizer.param_groups, ratios, strict=True):
            group["lr"] = test.rate(step) * own / ratios[0]
        stepper.step(window)
        module.state.global_step = step + 1
        losses.append(agreed(stepper.losses.since_log()))
        average = test.smoothing * average + (1 - test.smoothing) * losses[-1]
        smoothed.append(average / (1 - test.smoothing ** (step + 1)))
        diverged = not math.isfinite(average) or smoothed[-1] > test.divergence * min(smoothed)
        if diverged:
            break
    rates = tuple(test.rate(step) for step in range(len(losses)))
    return LearningRateCurve(rates, tuple(losses), tuple(smoothed), diverged)


def _windows(data: TrainingData, state: TrainingState) -> Iterator[Window]:
    """Yield the windows of one epoch after another."""
    for epoch in count():
        state.epoch, state.train_step = epoch, 0
        yield from data.windows(epoch)


@contextmanager
def _unscheduled(module: AcceleratorModule) -> Iterator[None]:
    """Let the module make no scheduler in the block."""
    module.get_scheduler = lambda *_: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.get_scheduler


@contextmanager
def _restored(made: Plan) -> Iterator[None]:
    """Restore everything that a training changes in the block: weights, optimizer, modes, attributes, random states."""
    module, loader, optimizer = made.module, made.data.loader, made.optimizer
    networks = [module.model, *(value for value in vars(module).values() if isinstance(value, torch.nn.Module))]
    layers = {id(layer): (layer, layer.training) for network in networks for layer in network.modules()}
    tensors = {id(one): one for network in networks for one in (*network.parameters(), *network.buffers())}
    tensors |= {id(one): one for group in optimizer.param_groups for one in group["params"]}
    values = [(one, one.detach().clone(), one.grad, one.requires_grad) for one in tensors.values()]
    former = copy.deepcopy(optimizer.state_dict())
    things = [module, *networks, *([module.state] if module.state is not None else [])]
    generators = generators_of(module, module.model, {"train": loader})
    with untouched(things, [loader], generators), untouched_random_state(made.accelerator.device):
        try:
            yield
        finally:
            _put_back(values)
            optimizer.load_state_dict(former)
            for layer, training in layers.values():
                layer.training = training


def _put_back(values: Sequence[tuple[Tensor, Tensor, Tensor | None, bool]]) -> None:
    with torch.no_grad():
        for tensor, value, gradient, requires_grad in values:
            tensor.copy_(value)
            tensor.grad = gradient
            if tensor.is_leaf and tensor.requires_grad != requires_grad:
                tensor.requires_grad_(requires_grad)

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

from accmt.checkpoint.rng import untouched_random_state
from accmt.config.errors import ConfigError, Problem
from accmt.data.generators import generators_of
from accmt.data.loaders import TrainingData, Window
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

_SMOOTHING = 0.9  # the weight of the past in the moving average
_DIVERGENCE = 4.0  # the test ends when the average exceeds its minimum by this factor


@dataclass(frozen=True, slots=True)
class LearningRateCurve:
    """Result of a learning rate range test.

    Attributes:
        rates: The learning rate of each step.
        losses: The mean loss of each step, before its update.
        smoothed: Exponential moving averages of the losses, without the bias towards their start.
        diverged: The test ended early, because the loss diverged.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    diverged: bool

    def __repr__(self) -> str:
        return f"LearningRateCurve({len(self.rates)} steps, suggestion {self.suggestion}, diverged {self.diverged})"

    @property
    def suggestion(self) -> float | None:
        """The rate of the steepest descent, which is the middle of the fifth of all steps in which a straight line
        through the losses falls most steeply. None if it never falls."""
        known = [loss for loss in self.losses if math.isfinite(loss)]
        width = max(2, len(known) // 5)
        parts = [known[begin : begin + width] for begin in range(len(known) - width + 1)]
        slopes = [float(np.polyfit(range(width), part, 1)[0]) for part in parts]
        steepest = min(slopes, default=0.0)
        return self.rates[slopes.index(steepest) + width // 2] if steepest < 0 else None

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the losses over the rates, which a notebook shows; with a path it is also saved. Needs matplotlib."""
        try:
            from accmt.tracking.plot import InlineFigure
        except ImportError:
            raise ImportError("a picture needs matplotlib: pip install matplotlib") from None
        figure = InlineFigure()
        axes = figure.add_subplot(xscale="log", xlabel="learning rate", ylabel="training loss")
        axes.plot(self.rates, self.losses, alpha=0.3, label="of each step")
        axes.plot(self.rates, self.smoothed, label="smoothed")
        if self.suggestion is not None:
            axes.axvline(self.suggestion, linestyle="--", label=f"suggestion {self.suggestion:.2g}")
        axes.legend()
        if path is not None:
            figure.savefig(Path(path).expanduser())
        return figure


def rates_between(least: float, most: float, steps: int) -> list[float]:
    """Return rates that grow by the same factor.

    Raises:
        ValueError: They are not positive, do not grow, or are fewer than 2.
    """
    if not 0 < least < most < math.inf or isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
        given = f"min_lr={least}, max_lr={most}, steps={steps}"
        raise ValueError(f"{given}: the rates must be positive, the second greater, and steps a whole number from 2")
    return [float(rate) for rate in np.geomspace(least, most, steps)]


def find_rates(options: Options, module: AcceleratorModule, dataset: Any, rates: Sequence[float]) -> LearningRateCurve:
    """Train a module at growing rates, and restore it.

    Raises:
        ConfigError: The training is not possible, or its state could not be restored.
    """
    options = replace(
        options,
        hps=replace(options.hps, scheduler=None, scheduler_kwargs={}),
        rules=RuleOptions((), CadenceRule.parse("epoch"), (), None, options.rules.replicates),
        checkpoint=replace(options.checkpoint, every=None, resume=False, on_exception=False, in_background=False),
        loop=replace(options.loop, followed=None),
        metrics={},
        callbacks=(),
    )
    check_fit(options, module, dataset, None)
    if isinstance(module, ExtendedAcceleratorModule):
        raise _refused("module", f"{type(module).__name__} makes its optimizer steps itself: leave out the test")
    if isinstance(dataset, Iterator):
        raise _refused("train_dataset", "is an iterator, and what is read from it would be missing in the training")
    with ExitStack() as stack:
        stack.enter_context(lent(module))
        stack.callback(
            vars(module).update, {name: one for name, one in vars(module).items() if name == "get_scheduler"}
        )
        module.get_scheduler = lambda *_: None  # type: ignore[method-assign]
        stack.callback(vars(module).pop, "get_scheduler")
        made = plan(options, Path(), (), module, dataset, {})
        for end in (leave_side_groups, made.accelerator.free_memory, made.close):
            stack.callback(end)
        if made.accelerator.distributed_type not in PLAIN:
            engine = made.accelerator.distributed_type.value
            raise _refused("module", f"its state could not be restored with {engine}: launch the test without it")
        if not all(group.get("lr") for group in made.optimizer.param_groups):
            raise _refused("lr", "the optimizer has no positive learning rate, which the test would scale: give it one")
        stack.enter_context(_restored(made))
        return _tested(made, rates)


def _refused(place: str, text: str) -> ConfigError:
    return ConfigError([Problem(place, text)], "find_lr(...)")


def _tested(made: Plan, rates: Sequence[float]) -> LearningRateCurve:
    """Train a step at each rate, until the loss diverges."""
    module, accelerator, options = made.module, made.accelerator, made.options
    module.tracker, module.state = NoTracker(), TrainingState()
    module.device, module.accelerator = accelerator.device, accelerator
    prepared = prepare(module, made.optimizer, options.model, through_wrapper=options.step.through_wrapper)
    groups = made.optimizer.param_groups  # which `prepare` replaces
    ratios = [float(group["lr"]) / float(groups[0]["lr"]) for group in groups]
    stepper = stepper_of(made, prepared, Hooks((), module.state), looks=False)
    losses, smoothed, average, diverged = list[float](), list[float](), 0.0, False
    for rate, window in zip(rates, _windows(made.data, module.state), strict=False):
        for group, ratio in zip(groups, ratios, strict=True):
            group["lr"] = rate * ratio
        stepper.step(window)
        losses.append(stepper.losses.since_log())
        average = _SMOOTHING * average + (1 - _SMOOTHING) * losses[-1]
        smoothed.append(average / (1 - _SMOOTHING ** len(losses)))
        settled = smoothed[len(rates) // 10 :]
        diverged = not math.isfinite(average) or smoothed[-1] > _DIVERGENCE * min(settled, default=math.inf)
        if diverged:
            break
    return LearningRateCurve(tuple(rates[: len(losses)]), tuple(losses), tuple(smoothed), diverged)


def _windows(data: TrainingData, state: TrainingState) -> Iterator[Window]:
    """Yield the windows of one epoch after another."""
    for epoch in count():
        state.epoch, state.train_step = epoch, 0
        for window in data.windows(epoch):
            yield window
            state.global_step += 1


@contextmanager
def _restored(made: Plan) -> Iterator[None]:
    """Restore what a training changes in the block: weights, optimizer, modes, attributes, data and random states."""
    module, loader, optimizer = made.module, made.data.loader, made.optimizer
    networks = [value for value in vars(module).values() if isinstance(value, torch.nn.Module)]
    modes = [(layer, layer.training) for network in networks for layer in network.modules()]
    tensors = [one for network in networks for one in (*network.parameters(), *network.buffers())]
    tensors += [one for group in optimizer.param_groups for one in group["params"]]
    values = [(one, one.detach().clone(), one.grad) for one in tensors]
    former = copy.deepcopy(optimizer.state_dict())
    things = [module, *networks, *([] if module.state is None else [module.state])]
    generators = generators_of(module, module.model, {"train": loader})
    with untouched(things, [loader], generators), untouched_random_state(made.accelerator.device):
        try:
            yield
        finally:
            for tensor, value, gradient in values:
                tensor.detach().copy_(value)
                tensor.grad = gradient
            optimizer.load_state_dict(former)
            for layer, training in modes:
                layer.training = training

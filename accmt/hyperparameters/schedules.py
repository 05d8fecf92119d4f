"""Learning rate schedules with warm-up, as functions of the step over torch's LambdaLR.

Each has the arguments of the transformers schedule of the same name and gives the same learning rates, without
requiring transformers. A step is one call of `scheduler.step()`; the schedule's factor multiplies the initial learning
rate of each parameter group.

The factors are closures, so the scheduler's `state_dict()` contains only numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

_UNBOUNDED_TIMESCALE = 10_000


def constant(optimizer: Optimizer, last_epoch: int = -1) -> LambdaLR:
    """Keep the learning rate constant."""
    return _schedule(optimizer, lambda step: 1.0, last_epoch)


def constant_with_warmup(optimizer: Optimizer, num_warmup_steps: int, last_epoch: int = -1) -> LambdaLR:
    """Rise linearly from 0 over `num_warmup_steps`, then stay constant."""
    return _schedule(optimizer, _warmed(num_warmup_steps, lambda step: 1.0), last_epoch)


def linear_with_warmup(
    optimizer: Optimizer, num_warmup_steps: int, num_training_steps: int, last_epoch: int = -1
) -> LambdaLR:
    """Rise linearly from 0, then fall linearly to 0 at `num_training_steps`."""
    length = max(1, num_training_steps - num_warmup_steps)
    factor = _warmed(num_warmup_steps, lambda step: max(0.0, (num_training_steps - step) / length))
    return _schedule(optimizer, factor, last_epoch)


def cosine_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
) -> LambdaLR:
    """Rise linearly from 0, then follow `num_cycles` cosine waves; half a wave falls to 0 at `num_training_steps`."""
    progress = _progress(num_warmup_steps, num_training_steps)

    def factor(step: int) -> float:
        return max(0.0, _cosine(2.0 * num_cycles * progress(step)))

    return _schedule(optimizer, _warmed(num_warmup_steps, factor), last_epoch)


def cosine_with_hard_restarts_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: int = 1,
    last_epoch: int = -1,
) -> LambdaLR:
    """Rise linearly from 0, then fall `num_cycles` times along a half cosine from the full learning rate to 0."""
    progress = _progress(num_warmup_steps, num_training_steps)

    def factor(step: int) -> float:
        done = progress(step)
        return 0.0 if done >= 1.0 else max(0.0, _cosine((num_cycles * done) % 1.0))

    return _schedule(optimizer, _warmed(num_warmup_steps, factor), last_epoch)


def inverse_sqrt(
    optimizer: Optimizer, num_warmup_steps: int, timescale: int | None = None, last_epoch: int = -1
) -> LambdaLR:
    """Rise linearly from 0, then fall with the inverse square root of the step.

    `timescale` is the number of steps after which the fall has reached 1/sqrt(2); by default the warm-up steps, or
    10,000 without warm-up. (Zhai et al., Scaling Vision Transformers, https://arxiv.org/abs/2106.04560)
    """
    scale = timescale if timescale is not None else num_warmup_steps or _UNBOUNDED_TIMESCALE

    def factor(step: int) -> float:
        return math.sqrt(scale / (step - num_warmup_steps + scale))

    return _schedule(optimizer, _warmed(num_warmup_steps, factor), last_epoch)


def polynomial_decay_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    lr_end: float = 1e-7,
    power: float = 1.0,
    last_epoch: int = -1,
) -> LambdaLR:
    """Rise linearly from 0, then fall polynomially to `lr_end`, which is kept after `num_training_steps`.

    Raises:
        ValueError: If `lr_end` is not below the learning rate of every parameter group.
    """
    progress = _progress(num_warmup_steps, num_training_steps)

    def factor_of(start: float) -> Callable[[int], float]:
        if not lr_end < start:
            raise ValueError(f"lr_end must be below the learning rate of the optimizer ({start:g}), not {lr_end:g}")

        def factor(step: int) -> float:
            remaining: float = max(0.0, 1.0 - progress(step)) ** power
            return (lr_end + (start - lr_end) * remaining) / start

        return _warmed(num_warmup_steps, factor)

    return _schedule(optimizer, [factor_of(start) for start in _starts(optimizer)], last_epoch)


def _schedule(
    optimizer: Optimizer, factors: Callable[[int], float] | list[Callable[[int], float]], last_epoch: int
) -> LambdaLR:
    _starts(optimizer)
    return LambdaLR(optimizer, factors, last_epoch)


def _starts(optimizer: Optimizer) -> list[float]:
    """Return the initial learning rate of each parameter group."""
    starts = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
    if None in starts:
        raise ValueError("the optimizer has no learning rate to schedule (lr is None), give lr in optim_kwargs")
    return [float(start) for start in starts]


def _warmed(num_warmup_steps: int, factor: Callable[[int], float]) -> Callable[[int], float]:
    """Return `factor` preceded by a linear rise from 0 to 1."""
    return lambda step: step / num_warmup_steps if step < num_warmup_steps else factor(step)


def _progress(num_warmup_steps: int, num_training_steps: int) -> Callable[[int], float]:
    """Return the progress after the warm-up: 0 at its end, 1 at the end of the training, and more beyond it."""
    length = max(1, num_training_steps - num_warmup_steps)
    return lambda step: (step - num_warmup_steps) / length


def _cosine(halves: float) -> float:
    """Return a cosine that falls from 1 to 0 over the first half wave."""
    return 0.5 * (1.0 + math.cos(math.pi * halves))

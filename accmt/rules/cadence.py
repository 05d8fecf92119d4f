"""Decides when a cadence is due, as a function of two moments of the training."""

from __future__ import annotations

import functools
import math
from fractions import Fraction

from accmt.rules.nodes import Cadence, Quantity, format_number
from accmt.rules.progress import Length, Progress
from accmt.rules.units import PERCENT, SECONDS

Exact = int | Fraction


def is_due(cadence: Cadence, before: Progress, now: Progress, fired: Progress, length: Length) -> bool:
    """Return whether the cadence comes due between two moments.

    A single quantity is due when its counter crosses a multiple of it, counted from 0. Quantities joined by `or` are
    counted from `fired`, the moment when the cadence last came due.
    """
    if cadence.after is not None and not has_passed(cadence.after, now, length):
        return False
    if len(cadence.every) == 1:
        [quantity] = cadence.every
        return _times(quantity, now, length) > _times(quantity, before, length)
    return any(_counter(q, now) - _counter(q, fired) >= amount(q, length) for q in cadence.every)


def has_passed(quantity: Quantity, now: Progress, length: Length) -> bool:
    """Return whether more than the quantity has passed since the start (an equal amount does not count)."""
    if _counts_epochs(quantity):
        return (now.epoch, now.step_in_epoch) > (quantity.value, 0)
    return _counter(quantity, now) > amount(quantity, length)


def next_step(cadence: Cadence, now: Progress, fired: Progress, length: Length) -> int | None:
    """Return the first step after `now` at which the cadence can come due by counting steps or samples.

    None where only the end of an epoch, an evaluation or the clock can make it due.
    """
    since = fired if len(cadence.every) > 1 else None
    steps = [_next_step(quantity, now, since, length) for quantity in cadence.every]
    if (awaited := _awaited(cadence)) is not None and not has_passed(awaited, now, length):
        steps.append(_passing_step(awaited, now, length))
    return min((step for step in steps if step is not None), default=None)


def next_elapsed(cadence: Cadence, now: Progress, fired: Progress) -> float:
    """Return the elapsed seconds at which the cadence comes due by the clock; infinity if it never does."""
    moments = [math.inf]
    for quantity in cadence.every:
        if quantity.unit in SECONDS:
            seconds = amount(quantity, Length())
            begin = _times(quantity, now, Length()) * seconds if len(cadence.every) == 1 else Fraction(fired.elapsed)
            moments.append(at_most(begin + seconds))
    awaited = _awaited(cadence)
    if awaited is not None and awaited.unit in SECONDS and not has_passed(awaited, now, Length()):
        moments.append(at_most(amount(awaited, Length())))
    return min(moments)


def never_due(cadence: Cadence, length: Length) -> bool:
    """Return whether the cadence certainly never comes due in a training of this length."""
    lasts = [_last_step(quantity, length) for quantity in cadence.every]
    if length.total_steps is None or any(last is None for last in lasts):
        return False
    last = max(last for last in lasts if last is not None)
    begin = 0 if cadence.after is None else _fewest_steps(cadence.after, length)
    return begin is not None and begin >= (last if len(lasts) == 1 or last == 0 else length.total_steps)


def never_passes(quantity: Quantity, length: Length) -> bool:
    """Return whether a training of this length certainly ends before more than the quantity has passed."""
    steps = _fewest_steps(quantity, length)
    return steps is not None and length.total_steps is not None and steps >= length.total_steps


@functools.lru_cache(maxsize=1024)
def amount(quantity: Quantity, length: Length) -> Exact:
    """Return the quantity in the unit of its counter; exact, so that 0.07 epochs of 100 steps are 7 steps."""
    scale = Fraction(SECONDS.get(quantity.unit, 1))
    if quantity.unit == PERCENT and length.total_steps is not None:
        scale = Fraction(max(1, length.total_steps), 100)
    elif _counts_steps_of_epochs(quantity) and length.steps_per_epoch is not None:
        scale = Fraction(max(1, length.steps_per_epoch))
    elif quantity.unit == PERCENT or _counts_steps_of_epochs(quantity):
        raise ValueError(f"'{quantity}' needs the length of the training, which is not known")
    count = exact(quantity.value) * scale
    return count.numerator if count.denominator == 1 else count


def exact(value: float) -> Fraction:
    """Return the number as it was written: 0.07 is 7/100."""
    return Fraction(format_number(value))


def _awaited(cadence: Cadence) -> Quantity | None:
    """Return the `after` whose passing makes a cadence due: with `or`, its quantities may have passed long before."""
    return cadence.after if len(cadence.every) > 1 else None


def _next_step(quantity: Quantity, now: Progress, fired: Progress | None, length: Length) -> int | None:
    if quantity.unit in SECONDS or quantity.unit == "evaluation" or _counts_epochs(quantity):
        return None
    begin = _times(quantity, now, length) * amount(quantity, length) if fired is None else _counter(quantity, fired)
    target = begin + amount(quantity, length)
    if quantity.unit == "sample":
        return now.step + _fewest_steps_for(target - now.samples, length)
    return max(math.ceil(target), now.step + 1)


def _passing_step(quantity: Quantity, now: Progress, length: Length) -> int | None:
    """Return the first step at which more than the quantity can have passed, None if steps do not determine it."""
    if quantity.unit in SECONDS or quantity.unit == "evaluation":
        return None
    if _counts_epochs(quantity):
        return now.step + 1 if now.epoch >= quantity.value else None
    if quantity.unit == "sample":
        return now.step + _fewest_steps_for(amount(quantity, length) - now.samples, length)
    return max(math.floor(amount(quantity, length)), now.step) + 1


def _fewest_steps_for(samples: Exact, length: Length) -> int:
    """Return the minimum number of steps, at least one, that can yield this many samples."""
    return 1 if length.samples_per_step is None else max(1, math.ceil(Fraction(samples) / length.samples_per_step))


def _fewest_steps(quantity: Quantity, length: Length) -> Exact | None:
    """Return the minimum number of steps in which the quantity can pass, None if steps do not determine it."""
    match quantity.unit:
        case "step":
            return amount(quantity, length)
        case "%":
            return None if length.total_steps is None else amount(quantity, length)
        case "epoch":
            return None if length.steps_per_epoch is None else exact(quantity.value) * length.steps_per_epoch
        case "sample":
            return None if length.samples_per_step is None else exact(quantity.value) / length.samples_per_step
    return None


def _last_step(quantity: Quantity, length: Length) -> Exact | None:
    """Return the last step at which a cadence of this quantity comes due; 0 for never, None if unknown."""
    steps, total = _fewest_steps(quantity, length), length.total_steps
    if steps is None or total is None:
        return None
    if _counts_epochs(quantity) and length.steps_per_epoch is not None:
        epochs = math.ceil(Fraction(total, length.steps_per_epoch))  # the last step of a training ends its epoch
        return min(total, epochs // exact(quantity.value) * steps)
    if quantity.unit == "sample":
        return 0 if steps > total else None
    return total // steps * steps


def _times(quantity: Quantity, now: Progress, length: Length) -> int:
    return _counter(quantity, now) // amount(quantity, length)


def _counter(quantity: Quantity, now: Progress) -> Exact:
    """Return the counter for the quantity's unit: percentages and fractions of epochs are measured in steps."""
    if quantity.unit in SECONDS:
        return Fraction(now.elapsed)
    if _counts_epochs(quantity):
        return now.epoch
    if quantity.unit == "sample":
        return now.samples
    return now.evaluation if quantity.unit == "evaluation" else now.step


def _counts_epochs(quantity: Quantity) -> bool:
    return quantity.unit == "epoch" and quantity.value.is_integer()


def _counts_steps_of_epochs(quantity: Quantity) -> bool:
    return quantity.unit == "epoch" and not quantity.value.is_integer()


def at_most(moment: Exact) -> float:
    """Round the moment down to a float, so that the check never comes too late."""
    try:
        nearest = float(moment)
    except OverflowError:
        return math.inf
    return nearest if nearest <= moment else math.nextafter(nearest, -math.inf)

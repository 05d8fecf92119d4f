"""The parameters that are trained. Users freeze and unfreeze parts and add groups to the optimizer at any time, so the
set is checked at every step, and what depends on it is updated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import is_not
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from accmt._compat import LAST_RATES, schedulers_in
from accmt.checkpoint.shards import reshard
from accmt.config.errors import ConfigError, Problem
from accmt.distributed.ddp_buckets import wrap_again
from accmt.distributed.strategy import is_deepspeed
from accmt.loop.learning_rate import Schedule
from accmt.module import AcceleratorModule
from accmt.notices import warn

_LISTED = 4
# Attributes that schedulers keep for each parameter group.
_BY_GROUP = ("base_lrs", "lr_lambdas", LAST_RATES, "min_lrs", "max_lrs", "base_momentums", "max_momentums")


@dataclass(frozen=True, slots=True)
class Beside:
    """Parameters besides those that the optimizer holds at the start.

    Attributes:
        named: Returns all parameters by name, including those of the model.
        left: Returns, by name, parameters outside the model that no optimizer in an attribute of the module holds.
        extend: Adds parameters of the model to an optimizer from the hyperparameters; None for one from the module.
    """

    named: Callable[[], Mapping[str, Tensor]]
    left: Callable[[], Mapping[str, Tensor]]
    extend: Callable[[Sequence[nn.Parameter]], None] | None


class Trained:
    """The parameters that an optimizer trains.

    Args:
        module: The module, which knows its Accelerator.
        model: The prepared model.
        optimizer: The unwrapped optimizer.
        schedule: Its scheduler, if there is one.
        beside: The parameters outside the model, and how the optimizer is extended.
        through_wrapper: The module calls the model through its wrapper.
    """

    def __init__(
        self,
        module: AcceleratorModule,
        model: nn.Module,
        optimizer: Any,
        schedule: Schedule,
        beside: Beside,
        *,
        through_wrapper: bool,
    ) -> None:
        self._accelerator = module.accelerator
        self._owner = type(module).__name__
        self._model = model
        self._optimizer = optimizer
        self._schedule = schedule
        self._beside = beside
        self._wrapper = model if through_wrapper and isinstance(model, DistributedDataParallel) else None
        self._parameters: list[nn.Parameter] = []
        self._required: list[bool] = []
        self._wrapped: set[int] = set()
        self._groups = len(optimizer.param_groups)
        self._unheld: dict[str, Tensor] | None = None
        self.look()
        self._required = [parameter.requires_grad for parameter in self._parameters]
        self._wrapped = self._known()

    def look(self) -> None:
        """Look up the current parameters of the model."""
        reshard(self._model)
        parameters = list(self._model.parameters())
        if len(parameters) != len(self._parameters) or any(map(is_not, parameters, self._parameters)):
            self._parameters, self._required = parameters, []

    def follow(self) -> None:
        """Update optimizer, scheduler and wrapper for what was frozen, unfrozen or added, before a forward pass.

        Raises:
            RuntimeError: The engine does not support that.
        """
        self.follow_groups()
        required = [parameter.requires_grad for parameter in self._parameters]
        if required == self._required:
            return
        if is_deepspeed(self._accelerator):
            raise RuntimeError(
                "parameters were frozen or unfrozen, and DeepSpeed shards the trained parameters before "
                "the first step: freeze them before fit, or launch without DeepSpeed"
            )
        self._required = required
        self._take_in()
        if self._wrapper is not None:
            wrap_again(self._wrapper)
            self._wrapped = self._known()

    def follow_groups(self) -> None:
        """Update the scheduler for groups that were added to the optimizer, before it steps."""
        if len(self._optimizer.param_groups) != self._groups:
            self._groups = len(self._optimizer.param_groups)
            _extend_scheduler(self._schedule.scheduler, self._optimizer.param_groups)

    def held(self) -> list[nn.Parameter]:
        """Return the parameters of the optimizer that require a gradient."""
        groups = self._optimizer.param_groups
        return [parameter for group in groups for parameter in group["params"] if parameter.requires_grad]

    def outside(self) -> list[nn.Parameter]:
        """Return the held parameters that no wrapper averages over the processes."""
        return [parameter for parameter in self.held() if id(parameter) not in self._wrapped]

    def numbered(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the optimizer, by their number in it."""
        groups = self._optimizer.param_groups
        return {str(number): one for number, one in enumerate(one for group in groups for one in group["params"])}

    def frozen(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Return the frozen parameters of the optimizer, each with a copy of its values."""
        held = (parameter for group in self._optimizer.param_groups for parameter in group["params"])
        return [(parameter, parameter.detach().clone()) for parameter in held if not parameter.requires_grad]

    def drop_frozen(self) -> list[nn.Parameter]:
        """Drop the gradients of frozen parameters: an optimizer updates whatever has one. Return the others."""
        held = []
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.requires_grad:
                    held.append(parameter)
                elif parameter.grad is not None:
                    parameter.grad = None
        return held

    def check_unheld(self) -> None:
        """Check, at the first gradients, that no parameter outside the model gets one if no optimizer holds it.

        Raises:
            ConfigError: One does.
        """
        if self._unheld is None:
            held = {id(parameter) for parameter in self.held()}
            named = self._beside.left()
            self._unheld = {name: value for name, value in named.items() if id(value) not in held}
            lost = [name for name, value in self._unheld.items() if value.requires_grad and value.grad is not None]
            if lost:
                raise ConfigError([unheld(self._owner, lost)], "fit(...)")

    def _known(self) -> set[int]:
        """Return the ids of the parameters that the wrapper averages."""
        if self._wrapper is None:
            return set()
        return {id(parameter) for parameter in self._parameters if parameter.requires_grad}

    def _take_in(self) -> None:
        """Add the parameters that are trained from now on to the optimizer."""
        held = {id(parameter) for group in self._optimizer.param_groups for parameter in group["params"]}
        new = [one for one in self._parameters if one.requires_grad and id(one) not in held]
        if not new:
            return
        if self._beside.extend is not None:
            self._beside.extend(new)
            self.follow_groups()
        else:
            ids = {id(parameter) for parameter in new}
            names = [name for name, value in self._model.named_parameters() if id(value) in ids]
            warn(
                f"{_listed(names)} of the model require a gradient, but the optimizer of get_optimizer does not hold "
                f"them: they are not trained. Add them: optimizer.add_param_group(...)"
            )


def unheld(owner: str, names: Sequence[str]) -> Problem:
    """Return the error for parameters outside the model that would not be trained."""
    ways = list(dict.fromkeys(name.partition(".")[0] for name in names))
    attributes = ", ".join(f"self.{way}" for way in ways)
    text = (
        f"{attributes} requires gradients, is not part of self.model, and no optimizer holds its parameters "
        f"({_listed(names)}): it would not be trained. Put it into self.model, return an optimizer that holds them "
        f"too from get_optimizer, or freeze it: self.freeze(...) or requires_grad_(False)"
    )
    return Problem(owner, text)


def _extend_scheduler(scheduler: Any, groups: Sequence[dict[str, Any]]) -> None:
    """Extend a scheduler by groups that were added: their rate becomes their initial one."""
    if scheduler is None:
        return
    for inner in schedulers_in(scheduler):
        _extend_scheduler(inner, groups)
    for group in groups:
        if "initial_lr" not in group:
            group["initial_lr"] = group.get("lr")
        for key, value in groups[0].items():
            group.setdefault(key, value)
    for name in _BY_GROUP:
        listed = getattr(scheduler, name, None)
        if isinstance(listed, list) and listed:
            for group in groups[len(listed) :]:
                rate = {"base_lrs": "initial_lr", LAST_RATES: "lr"}.get(name)
                listed.append(listed[-1] if rate is None else group[rate])


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more

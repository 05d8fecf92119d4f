"""The settings of the optimizer and the schedule of its learning rate, across resumes.

Settings come from the script, state from the checkpoint. An unchanged schedule continues from its state, bit by bit,
including changes that a callback made to the rates. One that has changed, in its arguments, its initial learning rate
or the length that it was built for, is rebuilt and stepped to the current position, so that each further step has the
rate of an uninterrupted training with the present settings.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from accmt._compat import schedulers_in
from accmt.checkpoint.optimizer_state import complete
from accmt.config.errors import ConfigError, Problem
from accmt.hyperparameters.recorded import described, digest, recorded, said
from accmt.hyperparameters.schedulers import follows_metric

_NO_SETTINGS = ("params", "param_names")
_CYCLED = ("momentum", "betas")
_MANNERS = ("foreach", "fused")
"""Settings that say how a step is computed: always the script's, also where torch's own choice is left to it."""


@dataclass(frozen=True, slots=True)
class ResumedAt:
    """Position of a training that is resumed.

    Attributes:
        step, epoch: Optimizer steps and epochs done.
        passed_end: The end of an epoch was skipped in between.
        is_finished: No step follows.
    """

    step: int
    epoch: int
    passed_end: bool
    is_finished: bool


class Schedule:
    """A scheduler, or none, with what is needed to rebuild it.

    Args:
        optimizer: The optimizer, fresh and without a scheduler.
        names: The name of each parameter, by its id.
        make: Builds the scheduler for the training's current length; returns None if there is none.
        length: Returns the current length of the training.
        per_epoch: It steps once an epoch.
        is_own: A function of the user builds it, which may use the length in any way.
    """

    adapts = True
    """A checkpoint of another scheduler can be loaded."""

    def __init__(
        self,
        optimizer: Any,
        names: Mapping[int, str],
        make: Callable[[], Any | None],
        length: Callable[[], list[int | None]],
        *,
        per_epoch: bool,
        is_own: bool,
    ) -> None:
        self._optimizer = optimizer
        self._make, self._length, self._per_epoch, self._is_own = make, length, per_epoch, is_own
        self._configured = [_settings(group) for group in optimizer.param_groups]
        self._groups = [_recorded_group(group, names) for group in optimizer.param_groups]
        self._changes: list[dict[str, Any]] = [{} for _ in self._groups]
        self._former_rates: list[Any] | None = None
        self._loads, self._steps_once = True, False
        self._build()

    @property
    def kind(self) -> str:
        """Class name of the scheduler."""
        return "" if self.scheduler is None else type(self.scheduler).__name__

    def record(self) -> dict[str, Any]:
        """Return what a checkpoint records, to detect changes later."""
        return {"groups": self._groups, "schedule": self._described}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the scheduler; empty if there is none."""
        return {} if self.scheduler is None else dict(self.scheduler.state_dict())

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Restore a state, if it belongs to this schedule."""
        if self._loads and self.scheduler is not None and state:
            self.scheduler.load_state_dict(state)

    def prepare(self, then: Mapping[str, Any], state: Mapping[str, Any], count: ResumedAt) -> list[str]:
        """Detect changes since a checkpoint, and step a changed schedule to the current position. Loads nothing yet.

        Args:
            then: The record of the checkpoint.
            state: The state of its scheduler.
            count: The current position.

        Returns:
            The changes, one line each.

        Raises:
            ConfigError: The present schedule ends before this position.
        """
        if self._length() != self._built_for:
            self._reset()
            self._build()
        matched = [_counterpart(place, self._groups, then["groups"]) for place in range(len(self._groups))]
        self._changes = [
            _changed(configured, group["settings"], other)
            for configured, group, other in zip(self._configured, self._groups, matched, strict=True)
        ]
        was = then["schedule"]
        has_changed = was != self._described
        changed = {name for change in self._changes for name in change}
        has_changed |= _cycles(self.scheduler) and not changed.isdisjoint(_CYCLED)
        self._loads = not has_changed
        self._steps_once = not has_changed and count.passed_end and self._per_epoch
        lines = _in_words(self._groups, matched)
        if has_changed and not count.is_finished:
            self._follow(was, state, count, matched)
            lines.append("the learning rate follows the schedule of the present settings from here on")
        return lines

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Load the state of optimizer and scheduler in the block; changed settings are taken from the script."""
        applied = False

        def replaced(optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
            nonlocal applied
            applied = True
            return {**state, "param_groups": self._overridden(state["param_groups"])}

        hook = getattr(self._optimizer, "register_load_state_dict_pre_hook", None)
        handle = None if hook is None else hook(replaced)
        try:
            yield
        finally:
            if handle is not None:
                handle.remove()
        if not applied:
            for group, new in self._with_new(self._optimizer.param_groups):
                group.update(new)
        complete(self._optimizer)
        if self._steps_once and self.scheduler is not None:
            self.scheduler.step()

    def _overridden(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the loaded groups with the script's settings applied; groups added by the training come last."""
        changed = [{**group, **new} for group, new in self._with_new(groups)]
        own = {name: value for name, value in getattr(self._optimizer, "defaults", {}).items() if name in _MANNERS}
        return [*changed, *({**group, **own} for group in groups[len(changed) :])]

    def _with_new(self, groups: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield each loaded group, with the settings of the script that replace its own."""
        if len(groups) < len(self._changes):
            return
        for place, (group, changes) in enumerate(zip(groups, self._changes, strict=False)):
            new = copy.deepcopy(changes)
            if self._former_rates is not None and "lr" in new and self._former_rates[place]:
                # The schedule follows a metric: its progress is state, its starting point a setting.
                new["lr"] = new["lr"] * (group["lr"] / self._former_rates[place])
            yield group, new

    def _build(self) -> None:
        self._built_for = self._length()
        self.scheduler = self._make()
        self._described = None
        if self.scheduler is not None:
            built_for = self._built_for if self._is_own else None
            self._described = {"per_epoch": self._per_epoch, "length": built_for, **_described(self.scheduler)}

    def _reset(self) -> None:
        """Reset the settings of the optimizer to its initial ones."""
        for group, settings in zip(self._optimizer.param_groups, self._configured, strict=True):
            for name in [name for name in group if name not in _NO_SETTINGS]:
                del group[name]
            group.update(copy.deepcopy(settings))

    def _follow(
        self,
        was: Mapping[str, Any] | None,
        state: Mapping[str, Any],
        count: ResumedAt,
        matched: list[Mapping[str, Any] | None],
    ) -> None:
        """Step a fresh schedule to the current position."""
        if self.scheduler is not None and follows_metric(self.scheduler):
            self._adopt(was, state, matched)
            return
        steps = count.epoch if self._per_epoch else count.step
        same_unit = was is not None and was["per_epoch"] == self._per_epoch
        if same_unit and type(state.get("last_epoch")) is int:  # steps may have been skipped, or be a module's own
            steps = state["last_epoch"] + (count.passed_end and self._per_epoch)
        if self.scheduler is not None:
            self._step(steps)
        cycles = _cycles(self.scheduler) or bool(state.get("cycle_momentum"))  # the present one, or the former one
        for group, configured, changes in zip(
            self._optimizer.param_groups, self._configured, self._changes, strict=True
        ):
            for name, value in _settings(group).items():
                is_fixed = name in configured and recorded(value) == recorded(configured[name])
                if name == "lr" or not is_fixed or (cycles and name in _CYCLED):
                    changes[name] = value

    def _step(self, steps: int) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about an optimizer that has not stepped yet
                for _ in range(steps):
                    self.scheduler.step()  # type: ignore[union-attr]
        except ValueError as error:
            text = f"the schedule ends before step {steps}, from which the training would resume: {error}"
            raise ConfigError([Problem("scheduler_kwargs", text)], "fit(...)") from error

    def _adopt(
        self, was: Mapping[str, Any] | None, state: Mapping[str, Any], matched: list[Mapping[str, Any] | None]
    ) -> None:
        """Restore the state of a schedule that only its metric can have brought here, except for changed settings."""
        assert self.scheduler is not None
        if was is None or was["kind"] != self.kind:
            for configured, changes in zip(self._configured, self._changes, strict=True):
                changes["lr"] = configured["lr"]
            return
        self._former_rates = [None if settings is None else settings.get("lr") for settings in matched]
        fresh, former = self.scheduler.state_dict(), was["state"]
        kept = {key: value for key, value in state.items() if key in fresh and recorded(fresh[key]) == former.get(key)}
        self.scheduler.load_state_dict({**fresh, **kept})


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: copy.deepcopy(value) for name, value in group.items() if name not in _NO_SETTINGS}


def _recorded_group(group: Mapping[str, Any], names: Mapping[int, str]) -> dict[str, Any]:
    parameters = sorted(names.get(id(parameter), "") for parameter in group["params"])
    settings = {name: recorded(value) for name, value in group.items() if name not in _NO_SETTINGS}
    return {"parameters": digest(parameters), "settings": settings}


def _counterpart(place: int, groups: list[dict[str, Any]], former: list[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the settings of the checkpoint's group with the same parameters, or in the same place."""
    same = [other for other in former if other["parameters"] == groups[place]["parameters"]]
    if len(same) != 1 and len(former) == len(groups):
        same = [former[place]]
    return same[0]["settings"] if len(same) == 1 else None


def _changed(configured: dict[str, Any], now: Mapping[str, Any], then: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the settings of a group that differ from the checkpoint's, with the values of the script."""
    if then is None:
        return dict(configured)
    return {
        name: value
        for name, value in configured.items()
        if name in _MANNERS or (name in then and then[name] != now[name])
    }


def _in_words(groups: list[dict[str, Any]], matched: list[Mapping[str, Any] | None]) -> list[str]:
    """Describe the changes of the settings, one line each; where groups differ, one line for each group."""
    lines: list[str] = []
    pairs = [(group["settings"], then) for group, then in zip(groups, matched, strict=True) if then is not None]
    for name in dict.fromkeys(name for now, _ in pairs for name in now):
        found = [
            (place, then[name], now[name])
            for place, (now, then) in enumerate(pairs)
            if name in now and name in then and then[name] != now[name]
        ]
        alike = len(found) == len(pairs) and all(change[1:] == found[0][1:] for change in found)
        for place, then_value, value in found[:1] if alike else found:
            lines.append(said(name if alike else f"{name} of parameter group {place}", then_value, value))
    return lines


def _described(scheduler: Any) -> dict[str, Any]:
    """Describe a fresh scheduler as far as its state shows; functions by their constants."""
    return {
        "kind": type(scheduler).__name__,
        "state": recorded(scheduler.state_dict()),
        "functions": [described(function) for function in getattr(scheduler, "lr_lambdas", ())],
        "parts": [_described(part) for part in schedulers_in(scheduler)],
    }


def _cycles(scheduler: Any) -> bool:
    return bool(getattr(scheduler, "cycle_momentum", False))

"""The state of an optimizer by parameter name, so that it is restored correctly however parameters are grouped.

    {"state": {"model.0.weight": {...}}, "param_groups": [{"params": ["model.0.weight"], "lr": ...}], "start": [...]}

`start` lists the parameters that it held before the first step. Parameters added since belong to the training and are
restored; those that the script now leaves out are not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from accmt.checkpoint.state_check import entries_problems, kept_for, options_problems
from accmt.rules.codec import from_plain_at
from accmt.rules.errors import listed

_STATE, _GROUPS, _PARAMS, _START, _NAMES = "state", "param_groups", "params", "start", "param_names"
_LISTED = 4
# Setting -> the state that it needs, and a state of the same shape. Optimizers create it, as zeros, at a first step.
_KEPT_FOR = {
    "amsgrad": ("max_exp_avg_sq", "exp_avg_sq"),
    "centered": ("grad_avg", "square_avg"),
    "momentum": ("momentum_buffer", "square_avg"),
}


@dataclass(frozen=True, slots=True)
class _Group:
    params: list[str]


@dataclass(frozen=True, slots=True)
class _Layout:
    state: dict[str, dict[str, Any]]
    param_groups: list[_Group]
    start: list[str]


@dataclass(slots=True)
class Fit:
    """Mapping of the state in a checkpoint onto an optimizer.

    Attributes:
        groups: For each group of the optimizer, then for each added group: its parameter names, in order.
        options: The options of each of these groups.
        lines: Why it does not fit, one line each.
        notes: Differences worth reporting, one line each.
    """

    groups: list[list[str]] = field(default_factory=list)
    options: list[dict[str, Any]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class NamedOptimizer:
    """Optimizer, as a part of a checkpoint.

    Args:
        optimizer: The optimizer, unwrapped.
        parameters: Returns all parameters that it may hold, by name.
    """

    def __init__(self, optimizer: Any, parameters: Callable[[], Mapping[str, Tensor]]) -> None:
        self.optimizer = optimizer
        self._parameters = parameters
        self._start = list(chain(*self._labels()))

    def state_dict(self) -> dict[str, Any]:
        """Return the state by parameter name; by number for an optimizer whose state is not laid out like torch's."""
        state: dict[str, Any] = self.optimizer.state_dict()
        groups = self._labels()
        if not _is_usual(state, groups):
            return state
        names = list(chain(*groups))
        saved = [{**_options(group), _PARAMS: own} for group, own in zip(state[_GROUPS], groups, strict=True)]
        by_name = {names[number]: value for number, value in state[_STATE].items()}
        return {**state, _STATE: by_name, _GROUPS: saved, _START: self._start}

    def fit(self, saved: Mapping[str, Any]) -> Fit:
        """Match a saved state to the optimizer, without changing either."""
        own = self._labels()
        if not _is_named(saved):
            sizes = [len(group) for group in own], [len(group[_PARAMS]) for group in saved[_GROUPS]]
            text = f"the optimizer has groups of {sizes[1]} parameters in the checkpoint and {sizes[0]} here"
            return Fit(own, [dict(group) for group in saved[_GROUPS]], [] if sizes[0] == sizes[1] else [text])
        fit = _matched(self.optimizer.param_groups, own, saved, {*self._parameters(), *chain(*own)})
        if isinstance(self.optimizer, torch.optim.LBFGS) and fit.groups != [g[_PARAMS] for g in saved[_GROUPS]]:
            fit.lines.append("LBFGS holds different parameters, or in a different order, than in the checkpoint")
        return fit

    def problems(self, saved: Any) -> list[str]:
        """List where a saved state is not one that this optimizer writes, one line each."""
        lines = _layout_problems(saved)
        if lines or not _is_named(saved):
            return lines
        held = set(chain.from_iterable(group[_PARAMS] for group in saved[_GROUPS]))
        strange = sorted(saved[_STATE].keys() - held)
        lines += [f"the optimizer of the checkpoint has a state of {name}, which it does not hold" for name in strange]
        known = self._known()
        for group in saved[_GROUPS]:
            lines += options_problems(self.optimizer, _options(group))
            kept: dict[Any, Mapping[str, Tensor]] = {}  # alike for all parameters of a shape
            for name in group[_PARAMS] if not lines else ():
                entries, parameter = saved[_STATE].get(name), known.get(name)
                if entries and parameter is not None:
                    look = (parameter.shape, parameter.dtype)
                    if look not in kept:
                        kept[look] = kept_for(self.optimizer, _options(group), parameter)
                    lines += entries_problems(kept[look], name, entries)
        return lines

    def parameter(self, name: str | int) -> Any:
        """Return the parameter with a name, or with a number where the state is not by name; None if there is none."""
        if isinstance(name, int) or name.isdecimal():
            return held_by(self.optimizer)[int(name)]
        return self._known().get(name)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Load a state that fits, with the groups and parameters that were added during the training."""
        if not _is_named(saved):
            self.optimizer.load_state_dict(saved)
            return
        fit = self.fit(saved)
        for place, names in enumerate(fit.groups):
            self._add(place, names, fit.options[place])
        numbers = {name: number for number, name in enumerate(chain(*fit.groups))}
        groups = [
            {**options, _PARAMS: [numbers[name] for name in names]}
            for names, options in zip(fit.groups, fit.options, strict=True)
        ]
        state = {numbers[name]: value for name, value in saved[_STATE].items() if name in numbers}
        rest = {key: value for key, value in saved.items() if key != _START}
        self.optimizer.load_state_dict({**rest, _STATE: state, _GROUPS: groups})

    def _known(self) -> dict[str, Tensor]:
        """Return all parameters by name, with those that the optimizer holds outside of any network."""
        return {**self._parameters(), **dict(zip(chain(*self._labels()), held_by(self.optimizer), strict=True))}

    def _add(self, place: int, names: Sequence[str], options: Mapping[str, Any]) -> None:
        """Add the missing parameters to a group, or the group itself if it is missing."""
        groups, known = self.optimizer.param_groups, self._parameters()
        if place >= len(groups):
            named = any(_NAMES in group for group in groups)
            new = [(name, known[name]) if named else known[name] for name in names]
            self.optimizer.add_param_group({**options, _PARAMS: new})
            return
        group = groups[place]
        added = names[len(group[_PARAMS]) :]
        group[_PARAMS].extend(known[name] for name in added)
        if _NAMES in group:
            group[_NAMES].extend(added)

    def _labels(self) -> list[list[str]]:
        """Return the names in each group; parameters outside of any network are numbered."""
        names = {id(parameter): name for name, parameter in reversed(list(self._parameters().items()))}
        labels: list[list[str]] = []
        unnamed = 0
        for group in self.optimizer.param_groups:
            labels.append([])
            for parameter in group[_PARAMS]:
                name = names.get(id(parameter))
                labels[-1].append(f"unnamed.{unnamed}" if name is None else name)
                unnamed += name is None
        return labels


def held_by(optimizer: Any) -> list[Any]:
    """Return the parameters of all groups of an optimizer."""
    return [parameter for group in optimizer.param_groups for parameter in group[_PARAMS]]


def laid_out_as(parameter: Tensor, value: Any) -> Any:
    """Return a tensor of a file in the memory layout of a parameter of its shape, which fused kernels rely on."""
    if type(value) is not Tensor or value.shape != parameter.shape or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def complete(optimizer: Any) -> None:
    """Add to a loaded state the entries of settings that were off when it was saved, and lay it out in memory."""
    for group in optimizer.param_groups:
        for parameter in group[_PARAMS] if isinstance(optimizer, torch.optim.Optimizer) else ():
            state = optimizer.state.get(parameter, {})
            state.update({name: laid_out_as(parameter, value) for name, value in state.items()})
        for setting, (missing, beside) in _KEPT_FOR.items():
            states = [optimizer.state[one] for one in group[_PARAMS] if one in optimizer.state]
            for state in states if group.get(setting) else ():
                if beside in state and missing not in state:
                    state[missing] = torch.zeros_like(state[beside])


def _layout_problems(saved: Any) -> list[str]:
    """Describe how the layout of a state by name differs from a written one; the optimizer checks states by number."""
    if isinstance(saved, Mapping) and not _is_named(saved):
        return []
    try:
        layout: _Layout = from_plain_at("optimizer", _Layout, saved)
    except ValueError as error:
        return [str(error)]
    names = Counter(chain.from_iterable(group.params for group in layout.param_groups))
    return [f"the optimizer of the checkpoint holds {name} twice" for name, count in names.items() if count > 1]


def _is_named(saved: Mapping[str, Any]) -> bool:
    return _START in saved


def _is_usual(state: Mapping[str, Any], groups: Sequence[Sequence[str]]) -> bool:
    """Return whether parameters are numbered in group order, as in torch, and their names are unique."""
    if not isinstance(state.get(_STATE), Mapping) or not isinstance(state.get(_GROUPS), list):
        return False
    if not all(isinstance(group, Mapping) and _PARAMS in group for group in state[_GROUPS]):
        return False
    names = list(chain(*groups))
    numbers = [number for group in state[_GROUPS] for number in group[_PARAMS]]
    sizes = [len(group[_PARAMS]) for group in state[_GROUPS]] == [len(group) for group in groups]
    known = all(isinstance(number, int) and number < len(names) for number in state[_STATE])
    return sizes and known and numbers == list(range(len(names))) and len(set(names)) == len(names)


def _matched(groups: Sequence[Mapping[str, Any]], own: list[list[str]], saved: Mapping[str, Any], known: Any) -> Fit:
    theirs = [list(group[_PARAMS]) for group in saved[_GROUPS]]
    options = [_options(group) for group in saved[_GROUPS]]
    held, start, saved_names = set(chain(*own)), set(saved[_START]), set(chain(*theirs))
    added = saved_names - held - start
    fit = Fit([list(names) for names in own], [_options(group) for group in groups])
    fit.lines += [
        f"the optimizer of the checkpoint holds '{name}', which does not exist here" for name in added - known
    ]
    pairs = _pairs(own, theirs)
    for place, other in pairs.items():
        fit.options[place] |= options[other]
    partner = {other: place for place, other in pairs.items()}
    for other, names in enumerate(theirs):
        new = [name for name in names if name in added and name in known]
        with_some = (place for place, mine in enumerate(own) if set(mine) & set(names))
        home = partner.get(other, next(with_some, None))
        if home is not None:
            fit.groups[home].extend(new)
        elif new:
            fit.groups.append(new)
            fit.options.append(options[other])
    gone, fresh = start - held - added, held - saved_names
    fit.notes += [f"the optimizer no longer holds {listed(sorted(gone), _LISTED)}"] if gone else []
    fit.notes += [f"the optimizer now holds {listed(sorted(fresh), _LISTED)} too"] if fresh else []
    if not gone and not fresh and sorted(map(sorted, fit.groups)) != sorted(map(sorted, theirs)):
        fit.notes.append("the parameters of the optimizer are grouped differently than before")
    return fit


def _pairs(own: Sequence[Sequence[str]], theirs: Sequence[Sequence[str]]) -> dict[int, int]:
    """Match each group here with the checkpoint's group that shares most names with it, each used once."""
    shared = [
        (len(set(mine) & set(other)), -abs(place - number), place, number)
        for place, mine in enumerate(own)
        for number, other in enumerate(theirs)
    ]
    pairs: dict[int, int] = {}
    for common, near, place, number in sorted(shared, reverse=True):
        is_same = common > 0 or (near == 0 and not own[place])
        if is_same and place not in pairs and number not in pairs.values():
            pairs[place] = number
    return pairs


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in (_PARAMS, _NAMES)}

"""Separation of trials: which objects they share, and which are copied for each.

A trial must not affect the next one through, say, a callback that counts, a sampler's generator or a metric's state. So
each trial gets copies of all arguments as they were when the search began. Datasets are too large to copy: they are
shared, and their random generators and the contents of their `state_dict` are restored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from torch.utils.data import Dataset

from accmt.callbacks import Callback
from accmt.checkpoint.object_state import has_state
from accmt.config.errors import Problem, raise_problems
from accmt.data.generators import Generators
from accmt.module import AcceleratorModule

_REMEDY = (
    "Create what cannot be copied in on_fit_start, or give the class a method __deepcopy__: if it returns self, the "
    "trials share the object"
)


class Copies:
    """Makes copies of arguments as they are now. Objects shared between arguments are shared between their copies too.

    Args:
        given: Name -> argument.
        shared: Objects that are never copied, wherever they are found.

    Raises:
        ConfigError: If something cannot be copied; with the names of all such arguments.
    """

    def __init__(self, given: Mapping[str, Any], shared: Mapping[str, Any]) -> None:
        self._shared = [*shared.values(), *_referred(given)]
        problems = [problem for name, value in _parts(given) for problem in self._problems(name, value)]
        raise_problems(problems, "HyperParameterSearch(...)")
        self._pristine = self._copied(given)

    def make(self) -> dict[str, Any]:
        """Return fresh copies, by name."""
        return dict(self._copied(self._pristine))

    def _copied(self, value: Any) -> Any:
        return deepcopy(value, {id(one): one for one in self._shared})

    def _problems(self, name: str, value: Any) -> list[Problem]:
        try:
            self._copied(value)
        except Exception as error:
            kind = f"{type(value).__name__} cannot be copied, and each trial needs its own"
            return [Problem(name, f"{kind}: {type(error).__name__}: {error}. {_REMEDY}")]
        return []


class Datasets:
    """Restores the state of datasets, apart from their samples, to what it is now.

    Args:
        datasets: Name -> dataset.
    """

    def __init__(self, datasets: Mapping[str, Any]) -> None:
        self._generators = Generators(datasets)
        self._drawn = deepcopy(self._generators.states())
        self._stateful = {name: dataset for name, dataset in datasets.items() if has_state(dataset)}
        self._states = {name: deepcopy(dataset.state_dict()) for name, dataset in self._stateful.items()}

    def reset(self) -> None:
        """Restore the datasets to the state that the first trial found."""
        for name, dataset in self._stateful.items():
            dataset.load_state_dict(deepcopy(self._states[name]))
        self._generators.restore(deepcopy(self._drawn))


def _parts(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the arguments one by one, including those in lists and dictionaries."""
    for name, value in given.items():
        if isinstance(value, Mapping):
            yield from _parts({f"{name}[{key!r}]": item for key, item in value.items()})
        elif isinstance(value, list | tuple):
            yield from _parts({f"{name}[{place}]": item for place, item in enumerate(value)})
        else:
            yield name, value


def _referred(given: Mapping[str, Any]) -> Iterator[Any]:
    """Yield datasets and modules that arguments refer to, and what an earlier training set on callbacks."""
    for _, value in _parts(given):
        attributes = dict(getattr(value, "__dict__", {}))
        if isinstance(value, Callback):
            yield from (attributes.pop(name) for name in ("module", "trainer", "state") if name in attributes)
        yield from (held for held in attributes.values() if isinstance(held, Dataset | AcceleratorModule))

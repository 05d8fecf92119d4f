"""A trial of the evaluation before the first step, for mistakes that would otherwise be found after an epoch: one batch
of each validation dataset.

It leaves everything as it was: random state, buffers, attributes, data and loaders. No hook is called.
"""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

from accelerate import PartialState
from torch.utils.data import DataLoader, IterableDataset

from accmt.checkpoint.together import Failed, everywhere, from_each
from accmt.config.errors import did_you_mean
from accmt.loop.engines import is_sharded
from accmt.loop.evaluate import (
    Evaluation,
    ValidationLoss,
    add_values,
    agreed_values,
    arguments_of,
    batches_of,
    inference,
    outputs_of,
)
from accmt.loop.exactness import generators_of
from accmt.loop.hooks import Hooks, noted
from accmt.loop.processes import agreed
from accmt.loop.untouched import untouched
from accmt.metrics.gather import Gatherer, gatherer_of
from accmt.metrics.metric import FunctionMetric, Metric
from accmt.metrics.torchmetrics import TorchMetric

_NOTE = "in the trial of the evaluation before the first step, which sanity_check=False leaves out"
_LONGEST = 10.0
# Errors that do not come from having few samples.
_CERTAIN = (TypeError, NameError, AttributeError, ImportError, NotImplementedError)


def try_out(evaluation: Evaluation) -> list[str]:
    """Try one batch of each validation dataset, and say what is worth a warning, one line each.

    for dataset in validation:
        validation_step(dataset, first batch)
        gather, compute                        # on more batches, where it fails on one

    Raises:
        Exception: What `validation_step` or a metric raised, or what is wrong with what they gave. Not what a metric
            raises on these few samples alone.
    """
    module = evaluation.module
    silent = replace(evaluation, hooks=Hooks((), module.state))
    metrics = {metric for listed in evaluation.metrics.values() for metric in listed}
    taken = {name for metric in metrics for name in (metric.name, metric.main_metric)}
    generators = generators_of(module, evaluation.model, evaluation.loaders)
    warnings: list[str] = []
    with (
        untouched([module, evaluation.model, module.state, *metrics], evaluation.loaders.values(), generators),
        inference(module, evaluation.model),
    ):
        for key, loader in evaluation.loaders.items():
            if any(everywhere(partial(_is_read_once, loader))):
                warnings.append(f"the validation data of '{key}' can be read only once: they are not tried beforehand")
                continue
            with _told():
                warnings += _try_dataset(silent, key, taken)
    return list(dict.fromkeys(warnings))


@dataclass(slots=True)
class _Tried:
    """What came of the first batches of a dataset: warnings, and what metrics could not be computed, by their name."""

    warnings: list[str] = field(default_factory=list)
    failures: dict[str, Exception] = field(default_factory=dict)
    is_whole: bool = False


def _try_dataset(evaluation: Evaluation, key: str, taken: Collection[str]) -> list[str]:
    """Try one batch, and where a metric fails on it, more of them, as long as that takes no more than seconds."""
    began, most = time.monotonic(), 1
    tried = first = _try_batches(evaluation, key, most, taken)
    while tried.failures and not tried.is_whole and agreed(time.monotonic() - began) < _LONGEST:
        most *= 2
        tried = _try_batches(evaluation, key, most, taken)
    if tried.is_whole:
        agreed_values({}, next(iter(tried.failures.values()), None), evaluation.module.device)
    warnings = first.warnings
    for name, error in first.failures.items():
        then = f"with {_batches(most)} it can"
        if name in tried.failures:
            then = f"nor on {_batches(most)}; the evaluation may fail" if most > 1 else "the evaluation may fail"
        warnings.append(
            f"the metric '{name}' cannot be computed on one batch of '{key}' ({type(error).__name__}: {error}), {then}"
        )
    return warnings


def _batches(number: int) -> str:
    return f"{number} batch{'es' * (number > 1)}"


def _try_batches(evaluation: Evaluation, key: str, most: int, taken: Collection[str]) -> _Tried:
    """Go through the first batches of a dataset as an evaluation does."""
    module, metrics = evaluation.module, evaluation.metrics[key]
    meter = ValidationLoss(module.device)
    gatherers = {metric: gatherer_of(metric, module.device) for metric in metrics}
    tried = _Tried()

    def go_through() -> None:
        read = _Read(evaluation.loaders[key], most)
        tried.is_whole = read.is_whole
        for batch, counts in islice(batches_of(evaluation, read), most):
            outputs = outputs_of(evaluation, key, batch)
            if counts:
                meter.add(outputs["loss"], batch, key)
                for metric, gatherer in gatherers.items():
                    with noted(f"metric '{metric.name}' on '{key}'", module.state):
                        arguments = arguments_of(outputs, metric, key)
                        _check_call(metric, arguments, key)
                        gatherer.add(arguments)
                tried.warnings += _untaken(outputs, taken, key)

    if is_sharded(module.accelerator):
        go_through()  # processes wait for each other in every forward pass
    else:
        from_each(go_through)
    meter.mean()
    _compute(tried, gatherers, key)
    tried.is_whole = all(everywhere(lambda: tried.is_whole))
    return tried


def _compute(tried: _Tried, gatherers: Mapping[Metric, Gatherer], key: str) -> None:
    """Compute all metrics: what fails is noted, on every process, and what is certainly wrong is raised on all."""
    values: dict[str, float] = {}
    wrong: Exception | None = None
    for metric, gatherer in gatherers.items():
        try:
            computed = gatherer.values()
        except Exception as error:
            error.add_note(f"raised in {type(metric).__name__} '{metric.name}' on '{key}'")
            tried.failures[metric.name] = error
            wrong = wrong or (error if isinstance(error, _CERTAIN) else None)
            continue
        try:
            if PartialState().is_main_process:
                add_values(values, computed or {}, metric, key)
        except Exception as error:
            wrong = wrong or error
    device = PartialState().device
    agreed_values({}, wrong, device)
    texts = everywhere(lambda: {name: f"{type(e).__name__}: {e}" for name, e in tried.failures.items()})
    for name, text in (item for found in texts for item in found.items()):
        tried.failures.setdefault(name, Failed(text))


def _check_call(metric: Metric, arguments: tuple[Any, ...], key: str) -> None:
    """Find out whether a metric can be called with as many arguments as `validation_step` gives.

    Raises:
        TypeError: It cannot.
    """
    if isinstance(metric, TorchMetric):
        return  # it is called, batch by batch
    function = metric.function if isinstance(metric, FunctionMetric) else metric.compute
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        text = f"the metric '{metric.name}' takes {signature}, and validation_step for '{key}' gives it"
        raise TypeError(f"{text} {len(arguments)} argument{'s' * (len(arguments) != 1)}: {error}") from None


def _untaken(outputs: Mapping[str, Any], taken: Collection[str], key: str) -> Iterator[str]:
    """What `validation_step` returns and nobody takes."""
    for name in outputs:
        if name != "loss" and name not in taken:
            known = f"The metrics are {', '.join(sorted(taken))}" if taken else "The trainer has no metrics"
            near = did_you_mean(str(name), taken) if taken else "."
            yield f"validation_step returns '{name}' for '{key}', and no metric takes it{near} {known}"


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(_NOTE)
        raise


class _Read:
    """The first batches of a loader, read in this process: workers are not started for so few.

    They are a loader to whoever asks, as long as the whole one.
    """

    def __init__(self, loader: Any, most: int) -> None:
        self._loader = loader
        try:
            self._batches = _first(_with_workers(loader, 0), most)
        except Exception:
            if not _workers(loader):
                raise
            self._batches = _first(_with_workers(loader, 1), most)  # they may be made ready in workers alone
        self.is_whole = len(self._batches) < most or (not _is_stream(loader) and len(loader) <= most)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def _is_stream(loader: Any) -> bool:
    return isinstance(getattr(loader, "dataset", None), IterableDataset)


def _first(loader: Any, most: int) -> list[Any]:
    return list(islice(iter(loader), most))


def _workers(loader: Any) -> int:
    return int(getattr(getattr(loader, "_loader", loader), "num_workers", 0))


def _with_workers(loader: Any, workers: int) -> Any:
    """A copy of a loader, that has not begun, with a number of workers."""
    copied = copy.copy(loader)
    inner = getattr(loader, "_loader", None)
    if not isinstance(loader, DataLoader):
        if isinstance(inner, DataLoader):
            copied._loader = _with_workers(inner, workers)
        return copied
    fresh: dict[str, Any] = {"_iterator": None, "next_iter_state": None, "_initial_iter_for_state_dict": False}
    fresh |= {"num_workers": workers, "persistent_workers": False, "prefetch_factor": 2 if workers else None}
    fresh |= {} if workers else {"timeout": 0}
    vars(copied).update({name: value for name, value in fresh.items() if name in vars(copied)})
    return copied


def _is_read_once(loader: Any) -> bool:
    """Whether what is read from a stream is gone: it is, or holds, an iterator."""
    if not _is_stream(loader):
        return isinstance(loader, Iterator)
    dataset = loader.dataset
    return isinstance(dataset, Iterator) or any(isinstance(value, Iterator) for value in vars(dataset).values())

"""A trial evaluation before the first step, on one batch of each validation dataset, for mistakes that would otherwise
be found after an epoch.

It leaves everything as it was: random state, buffers, attributes, data and loaders. No hook is called.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from accelerate import PartialState

from accmt.config.errors import did_you_mean
from accmt.data.batch_size import samples_of
from accmt.data.generators import generators_of
from accmt.data.validation import ValidationData
from accmt.distributed.collective import Failed, agreed, everywhere, from_each, raise_on_all
from accmt.distributed.strategy import shards_model
from accmt.loop.evaluate import (
    Evaluation,
    ValidationLoss,
    add_values,
    arguments_of,
    batches_of,
    inference,
    outputs_of,
)
from accmt.loop.hooks import Hooks, noted
from accmt.loop.restored_objects import untouched
from accmt.metrics.gather import Gatherer, gatherer_of
from accmt.metrics.metric import FunctionMetric, Metric
from accmt.metrics.torchmetrics import TorchMetric
from accmt.module import AcceleratorModule

_NOTE = "in the trial evaluation before the first step (sanity_check=False skips it)"
_LONGEST = 10.0
_T = TypeVar("_T")
# Errors that cannot come from having few samples.
_CERTAIN = (TypeError, NameError, AttributeError, ImportError, NotImplementedError)


def try_out(evaluation: Evaluation) -> list[str]:
    """Try one batch of each validation dataset, and return warnings, one line each.

    for dataset in validation:
        validation_step(dataset, first batch)
        gather, compute                        # on more batches, where it fails on one

    Raises:
        Exception: An error of `validation_step` or a metric, or in what they returned. Not one that a metric raises
            only because of so few samples.
    """
    module = evaluation.module
    silent = replace(evaluation, hooks=Hooks((), module.state))
    metrics = {metric for listed in evaluation.metrics.values() for metric in listed}
    taken = {name for metric in metrics for name in (metric.name, metric.main_metric)}
    loaders = {key: data.loader for key, data in evaluation.loaders.items()}
    generators = generators_of(module, evaluation.model, loaders)
    warnings: list[str] = []
    with (
        untouched([module, evaluation.model, module.state, *metrics], loaders.values(), generators),
        inference(module, evaluation.model),
    ):
        for key, loader in evaluation.loaders.items():
            if any(everywhere(partial(_is_read_once, loader))):
                warnings.append(
                    f"the validation data of '{key}' can be read only once: they are not part of the sanity check"
                )
                continue
            with _told():
                warnings += _try_dataset(silent, key, taken)
    return list(dict.fromkeys(warnings))


def seen_first(module: AcceleratorModule, key: str, data: ValidationData, look: Callable[[Any], _T]) -> list[_T | None]:
    """Return what a function makes of the first batch of a dataset, on each process; None where there is none.

    The data stay as they were; data that can be read only once are not read.
    """
    loaders = {key: data.loader}
    if any(everywhere(partial(_is_read_once, data))):
        return [None]
    with untouched((), loaders.values(), generators_of(module, module.model, loaders)):
        return from_each(lambda: next(map(look, _Read(data, 1)), None))


@dataclass(slots=True)
class _Tried:
    """Outcome of the first batches of a dataset: warnings, and the errors of metrics by name."""

    warnings: list[str] = field(default_factory=list)
    failures: dict[str, Exception] = field(default_factory=dict)
    is_whole: bool = False


def _try_dataset(evaluation: Evaluation, key: str, taken: Collection[str]) -> list[str]:
    """Try one batch, and if a metric fails on it, more of them, for a few seconds at most."""
    began, most = time.monotonic(), 1
    tried = first = _try_batches(evaluation, key, most, taken)
    while tried.failures and not tried.is_whole and agreed(time.monotonic() - began) < _LONGEST:
        most *= 2
        tried = _try_batches(evaluation, key, most, taken)
    if tried.is_whole:
        raise_on_all(next(iter(tried.failures.values()), None))
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
    """Process the first batches of a dataset as an evaluation does."""
    module, metrics = evaluation.module, evaluation.metrics[key]
    meter = ValidationLoss(module.device)
    gatherers = {metric: gatherer_of(metric, module.device) for metric in metrics}
    tried = _Tried()

    def go_through() -> None:
        read = _Read(evaluation.loaders[key], most)
        tried.is_whole = read.is_whole
        for batch, counts in islice(batches_of(evaluation, read), most):  # type: ignore[arg-type]
            samples = samples_of(batch, read.samples, module) if counts else 0
            outputs = outputs_of(evaluation, key, batch)
            if counts:
                meter.add(outputs["loss"], samples, key)
                for metric, gatherer in gatherers.items():
                    with noted(f"metric '{metric.name}' on '{key}'", module.state):
                        arguments = arguments_of(outputs, metric, key)
                        _check_call(metric, arguments, key)
                        gatherer.add(arguments)
                tried.warnings += _untaken(outputs, taken, key)

    if shards_model(module.accelerator):
        go_through()  # processes wait for each other in every forward pass
    else:
        from_each(go_through)
    meter.mean()
    _compute(tried, gatherers, key)
    tried.is_whole = all(everywhere(lambda: tried.is_whole))
    return tried


def _compute(tried: _Tried, gatherers: Mapping[Metric, Gatherer], key: str) -> None:
    """Compute all metrics: failures are recorded on every process, and certain mistakes are raised on all."""
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
    raise_on_all(wrong)
    texts = everywhere(lambda: {name: f"{type(e).__name__}: {e}" for name, e in tried.failures.items()})
    for rank, name, text in ((rank, *item) for rank, found in enumerate(texts) for item in found.items()):
        tried.failures.setdefault(name, Failed(f"process {rank}: {text}"))


def _check_call(metric: Metric, arguments: tuple[Any, ...], key: str) -> None:
    """Check that a metric accepts as many arguments as `validation_step` returns.

    Raises:
        TypeError: It does not.
    """
    if isinstance(metric, TorchMetric):
        return  # it is called batch by batch anyway
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
    """Yield a warning for each output of `validation_step` that no metric uses."""
    for name in outputs:
        if name != "loss" and name not in taken:
            known = f"The metrics are {', '.join(sorted(taken))}" if taken else "The trainer has no metrics"
            near = did_you_mean(str(name), taken) if taken else "."
            yield f"validation_step returns '{name}' for '{key}', and no metric uses it{near} {known}"


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(_NOTE)
        raise


class _Read:
    """First batches of validation data, read in this process: workers are not started for so few.

    All other attributes, such as the length, are those of the whole data.
    """

    def __init__(self, data: ValidationData, most: int) -> None:
        self._data = data
        self.samples: int | None = None
        try:
            self._batches = _first(data, 0, most)
        except Exception:
            if not data.loader.num_workers:
                raise
            self._batches = _first(data, 1, most)  # they may be prepared only in workers
        self.is_whole = len(self._batches) < most or (data.length is not None and data.length <= most)

    def __iter__(self) -> Iterator[Any]:
        for samples, batch in self._batches:
            self.samples = samples
            yield batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)


def _first(data: ValidationData, workers: int, most: int) -> list[tuple[int | None, Any]]:
    """Return the first batches, each with its number of samples."""
    read = data.with_workers(workers)
    try:
        return [(read.samples, batch) for batch in islice(read, most)]
    finally:
        read.close()


def _is_read_once(data: ValidationData) -> bool:
    """Return whether a stream can be read only once: it is, or holds, an iterator."""
    dataset = data.dataset
    if not data.is_stream:
        return False
    return isinstance(dataset, Iterator) or any(isinstance(value, Iterator) for value in vars(dataset).values())

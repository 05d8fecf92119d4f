"""A trial evaluation before the first step, on one batch of each validation dataset, for mistakes that would otherwise
be found after an epoch.

It leaves everything as it was: random state, buffers, attributes, data and loaders. No hook is called.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar

from accmt.config.errors import did_you_mean
from accmt.data.generators import generators_of
from accmt.data.validation import ValidationData
from accmt.distributed.collective import Failed, agreed, everywhere, from_each, raise_on_all
from accmt.distributed.strategy import shards_model
from accmt.loop.evaluate import DatasetValues, Evaluation, inference
from accmt.loop.hooks import Hooks, loading
from accmt.loop.restored_objects import untouched
from accmt.metrics.metric import FunctionMetric, Metric
from accmt.metrics.torchmetrics import TorchMetric
from accmt.module import AcceleratorModule
from accmt.resampling import Draws
from accmt.rules.store import dataset_name
from accmt.states import TrainingState

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
    replicated = evaluation.replicated and replace(evaluation.replicated, resamples=Draws(1))
    silent = replace(evaluation, hooks=Hooks((), module.state), replicated=replicated)
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
                name = dataset_name(key, evaluation.loaders)
                warnings.append(
                    f"the validation data of '{name}' can be read only once: they are not part of the sanity check"
                )
                continue
            try:
                warnings += _try_dataset(silent, key, taken)
            except Exception as error:
                error.add_note(_NOTE)
                raise
    return list(dict.fromkeys(warnings))


def seen_first(module: AcceleratorModule, key: str, data: ValidationData, look: Callable[[Any], _T]) -> list[_T | None]:
    """Return what a function makes of the first batch of a dataset, on each process; None where there is none.

    The data stay as they were; data that can be read only once are not read.
    """
    loaders = {key: data.loader}
    if any(everywhere(partial(_is_read_once, data))):
        return [None]
    with untouched((), loaders.values(), generators_of(module, module.model, loaders)):
        return from_each(lambda: next(map(look, _Read(data, 1, module.state)), None))


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
            f"the metric '{name}' cannot be computed on one batch of '{dataset_name(key, evaluation.loaders)}' "
            f"({type(error).__name__}: {error}), {then}"
        )
    return warnings


def _batches(number: int) -> str:
    return f"{number} batch{'es' * (number > 1)}"


class _Trial(DatasetValues):
    """Values of the first batches of a dataset; `is_whole` if these are all."""

    def __init__(self, evaluation: Evaluation, key: str, taken: Collection[str]) -> None:
        super().__init__(evaluation, key)
        self._taken = taken
        self.warnings: list[str] = []
        self.is_whole = False

    def read_first(self, data: ValidationData, most: int) -> None:
        """Process the first batches."""
        read = _Read(data, most, self._evaluation.module.state)
        self.is_whole = read.is_whole
        self.read(read, most)  # type: ignore[arg-type]

    def collect(self, outputs: Mapping[str, Any]) -> None:
        super().collect(outputs)
        self.warnings += _untaken(outputs, self._taken, self._name)

    def arguments(self, outputs: Mapping[str, Any], metric: Metric) -> tuple[Any, ...]:
        arguments = super().arguments(outputs, metric)
        _check_call(metric, arguments, self._name)
        return arguments


def _try_batches(evaluation: Evaluation, key: str, most: int, taken: Collection[str]) -> _Trial:
    """Process the first batches of a dataset as an evaluation does; all processes know the failures of each.

    Raises:
        Exception: A mistake that no further batch can change.
    """
    trial = _Trial(evaluation, key, taken)
    read_first = partial(trial.read_first, evaluation.loaders[key], most)
    if shards_model(evaluation.module.accelerator):
        read_first()  # processes wait for each other in every forward pass
    else:
        from_each(read_first)
    trial.compute()
    certain = (error for error in trial.failures.values() if isinstance(error, _CERTAIN))
    raise_on_all(next(chain(trial.mistakes, certain), None))
    texts = everywhere(lambda: {name: f"{type(e).__name__}: {e}" for name, e in trial.failures.items()})
    for rank, name, text in ((rank, *item) for rank, found in enumerate(texts) for item in found.items()):
        trial.failures.setdefault(name, Failed(f"process {rank}: {text}"))
    trial.is_whole = all(everywhere(lambda: trial.is_whole))
    return trial


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


class _Read:
    """First batches of validation data, read in this process: workers are not started for so few.

    All other attributes, such as the length, are those of the whole data.
    """

    def __init__(self, data: ValidationData, most: int, state: TrainingState) -> None:
        self._data = data
        self.samples: int | None = None
        try:
            self._batches = _first(data, 0, most, state)
        except Exception:
            if not data.loader.num_workers:
                raise
            self._batches = _first(data, 1, most, state)  # they may be prepared only in workers
        self.is_whole = len(self._batches) < most or (data.length is not None and data.length <= most)

    def __iter__(self) -> Iterator[Any]:
        for samples, batch in self._batches:
            self.samples = samples
            yield batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)


def _first(data: ValidationData, workers: int, most: int, state: TrainingState) -> list[tuple[int | None, Any]]:
    """Return the first batches, each with its number of samples."""
    read = data.with_workers(workers)
    try:
        return [(read.samples, batch) for batch in loading(islice(read, most), data.name, state)]
    finally:
        read.close()


def _is_read_once(data: ValidationData) -> bool:
    """Return whether a stream can be read only once: it is, or holds, an iterator."""
    dataset = data.dataset
    if not data.is_stream:
        return False
    return isinstance(dataset, Iterator) or any(isinstance(value, Iterator) for value in vars(dataset).values())

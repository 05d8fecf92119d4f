"""A plain `torch.nn.Module` with a loss as a module, and its metrics."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import replace
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from accmt.config.errors import ConfigError, Problem, argument_meant, must_be
from accmt.data.description import describe_batch
from accmt.data.validation import ValidationData
from accmt.loop.sanity_check import seen_first
from accmt.metrics.metric import FunctionMetric, Metric
from accmt.module import AcceleratorModule
from accmt.notices import warn
from accmt.rules.store import dataset_name
from accmt.setup.arguments import as_list
from accmt.setup.inputs import metrics_on
from accmt.setup.method_check import function_problems
from accmt.setup.options import Options
from accmt.setup.pretrained import is_pretrained, resolve

_NAMES = ("accuracy", "mae", "mse")
# Losses of classes, also with floating point targets: the output above which the answer is yes; None for scores.
_LIMITS: dict[Any, float | None] = {nn.CrossEntropyLoss: None, functional.cross_entropy: None}
_LIMITS |= dict.fromkeys((nn.BCEWithLogitsLoss, functional.binary_cross_entropy_with_logits), 0.0)
_LIMITS |= dict.fromkeys((nn.BCELoss, functional.binary_cross_entropy), 0.5)


class PlainModule(AcceleratorModule):
    """A `torch.nn.Module`, a loss of (output, target), and metrics besides the trainer's, or None for the defaults.

    In validation each metric gets (output, target).
    """

    metrics_on: Callable[[str], Sequence[Metric]]

    def __init__(self, model: nn.Module, loss_fn: Any, metrics: Sequence[Metric] | None) -> None:
        self.model = model
        self.loss_fn = partial(_on_device, loss_fn) if _is_of_torch(loss_fn) else loss_fn  # hidden from checkpoints
        self.metrics: Callable[[], Sequence[Metric] | None] = lambda: metrics  # hidden as well
        self._kind = loss_fn if isinstance(loss_fn, FunctionType) else type(loss_fn)
        self._ignored = getattr(loss_fn, "ignore_index", -100)
        self._names = set[str]()
        with suppress(ValueError, TypeError):  # compiled code may have no signature
            named = inspect.signature(model.forward).parameters.items()
            self._names = {name for name, one in named if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}

    def training_step(self, batch: Any) -> Tensor:
        return self._compared(batch)[0]

    def validation_step(self, key: str, batch: Any) -> dict[str, Any]:
        loss, output, target = self._compared(batch)
        given = {}
        for metric in self.metrics_on(key):
            is_mean = isinstance(metric, FunctionMetric) and metric.function is _mean
            given[metric.name] = self._terms(metric.name, output, target) if is_mean else (output, target)
        return {"loss": loss, **given}

    def default_metrics(self, batch: Any) -> tuple[str, ...]:
        """Return the names of the metrics for the targets of a batch: integers are classes."""
        *_, target = self._parts(batch)
        if isinstance(target, Tensor) and (not target.dtype.is_floating_point or _LIMITS.get(self._kind) is not None):
            return ("accuracy",)
        return ("mae", "mse") if isinstance(target, Tensor) and self._kind not in _LIMITS else ()

    def _compared(self, batch: Any) -> tuple[Tensor, Any, Any]:
        """Return the loss, the output and the target."""
        inputs, named, target = self._parts(batch)
        output = self.model(*inputs, **named)
        loss = self.loss_fn(output, target)
        if isinstance(loss, Tensor) and loss.numel() == 1:
            return loss, output, target
        shape = f" of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else ""
        raise TypeError(f"loss_fn must return a scalar tensor, not a {type(loss).__name__}{shape}")

    def _parts(self, batch: Any) -> tuple[Sequence[Any], Mapping[str, Any], Any]:
        """Return the arguments of the model, those by name, and the target."""
        named = {key: batch[key] for key in batch if key in self._names} if isinstance(batch, Mapping) else {}
        if named and len(named) == len(batch) - 1:
            return (), named, next(batch[key] for key in batch if key not in named)
        if isinstance(batch, tuple | list) and len(batch) > 1:
            *inputs, target = batch
            if len(inputs) == 1 and isinstance(inputs[0], Mapping) and self._names.issuperset(inputs[0]):
                return (), inputs[0], target
            return inputs, {}, target
        raise TypeError(
            f"a batch is (input, target), (input, ..., target), or a dictionary of arguments of forward "
            f"({', '.join(sorted(self._names))}) and the target, not {describe_batch(batch)}: "
            f"change the collate_fn, or write an AcceleratorModule"
        )

    def _terms(self, name: str, output: Any, target: Any) -> tuple[Tensor, Tensor]:
        """Return for each sample the sum of the values to average, and their number."""
        limit = _LIMITS.get(self._kind)
        are_classes = name == "accuracy" and limit is None
        shape = tuple(getattr(output, "shape", ()))
        if not isinstance(target, Tensor) or target.shape != ((*shape[:1], *shape[2:]) if are_classes else shape):
            text = f"'{name}' cannot compare an output, {describe_batch(output)}, with its target"
            raise TypeError(
                f"{text}, {describe_batch(target)}: make them alike, or give fit other metrics (metrics=[] for none)"
            )
        counts = torch.ones_like(target, dtype=torch.bool)
        if are_classes:
            hits, counts = output.argmax(1) == target, target != self._ignored
            values = hits & counts
        elif limit is not None and name == "accuracy":
            values = (output > limit) == (target > 0.5)
        else:
            dtype = torch.float32 if output.device.type == "mps" else torch.float64
            values = (output.to(dtype) - target.to(dtype)).abs() ** (2 if name == "mse" else 1)
        return values[:, None].flatten(1).sum(1), counts[:, None].flatten(1).sum(1)


def _mean(sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    return sums, counts


def _metric(name: str) -> Metric:
    return FunctionMetric(name, _mean, greater_is_better=name == "accuracy", per_sample=True)


def _is_of_torch(loss_fn: Any) -> bool:
    """Return whether a loss is one of torch's, which have no state: their weights are settings of the script."""
    return type(loss_fn).__module__ == nn.MSELoss.__module__


def _on_device(loss_fn: nn.Module, output: Any, target: Any) -> Any:
    return (loss_fn.to(target.device) if isinstance(target, Tensor) else loss_fn)(output, target)


def as_module(
    given: Any, options: Options, kwargs: Mapping[str, Any], loss_fn: Any, metrics: Any, source: str = "fit(...)"
) -> tuple[Any, Options]:
    """Return the module for what `fit` or `evaluate` was given, and the options with the metrics it was given.

    Raises:
        ConfigError: It cannot be used; `source` names the method.
    """
    try:
        if isinstance(given, nn.Module) and not isinstance(given, AcceleratorModule) and not is_pretrained(given):
            return _plain(given, options, kwargs, loss_fn, metrics)
        if isinstance(given, PlainModule) and loss_fn is metrics is None:
            return _with_metrics(copy(given), options)  # a callback evaluates the module of the training
        module = resolve(given, kwargs, options)
    except ConfigError as error:
        raise ConfigError(error.problems, source) from error.__cause__
    text = f"is for a plain torch.nn.Module, and {type(given).__name__} is not one"
    problems = [] if loss_fn is None else [Problem("loss_fn", f"{text}: the loss is that of the module")]
    problems += [] if metrics is None else [Problem("metrics", f"{text}: give them to Trainer(metrics=...)")]
    if problems:
        raise ConfigError(problems, source)
    return module, options


def _plain(
    model: nn.Module, options: Options, kwargs: Mapping[str, Any], loss_fn: Any, metrics: Any
) -> tuple[PlainModule, Options]:
    known = ("train_dataset", "val_dataset", "loss_fn", "metrics")
    problems = [Problem(name, f"unknown argument{argument_meant(name, known)}") for name in kwargs]
    if loss_fn is None:
        text = f"is missing, and {type(model).__name__} is a plain torch.nn.Module: give the loss, for example"
        text = f"{text} loss_fn=torch.nn.CrossEntropyLoss(), or write an AcceleratorModule"
        problems.append(Problem("loss_fn", text))
    is_module = isinstance(loss_fn, nn.Module)
    problems += function_problems("loss_fn", loss_fn.forward if is_module else loss_fn, ("output", "target"))
    inside = {id(one) for one in model.parameters()}
    if is_module and any(one.requires_grad and id(one) not in inside for one in loss_fn.parameters()):
        text = f"{type(loss_fn).__name__} has parameters to train, which no optimizer would hold"
        problems.append(Problem("loss_fn", f"{text}: write an AcceleratorModule with get_optimizer"))
    own = [_metric(one) if isinstance(one, str) and one in _NAMES else one for one in as_list(metrics)]
    wanted = f"a Metric, one of {', '.join(_NAMES)}, or a list of these"
    problems += [Problem("metrics", must_be(wanted, one)) for one in own if not isinstance(one, Metric)]
    if problems:
        raise ConfigError(problems)
    settings: Any = loss_fn
    if is_module:
        settings = {name: value for name, value in vars(loss_fn).items() if name[0] != "_" and name != "training"}
        settings |= {"type": type(loss_fn), **(dict(loss_fn.named_buffers()) if _is_of_torch(loss_fn) else {})}
    given = {**options.given, "loss_fn": settings, "fit_metrics": metrics}
    return _with_metrics(PlainModule(model, loss_fn, None if metrics is None else own), replace(options, given=given))


def _with_metrics(module: PlainModule, options: Options) -> tuple[PlainModule, Options]:
    """Join the metrics of the module and of the trainer."""
    merged = {**options.metrics, None: [*options.metrics.get(None, ()), *(module.metrics() or ())]}
    module.metrics_on = partial(metrics_on, merged)
    return module, replace(options, metrics=merged)


def with_default_metrics(options: Options, module: AcceleratorModule, loaders: Mapping[str, ValidationData]) -> Options:
    """Return the options, with metrics by the dtype of the targets for a plain module that was given none."""
    if not isinstance(module, PlainModule) or module.metrics() is not None or any(options.metrics.values()):
        return options
    metrics: dict[str | None, Sequence[Metric]] = {}
    for key, data in loaders.items():
        names = next(filter(None, seen_first(module, key, data, module.default_metrics)), ())
        metrics[key] = [_metric(name) for name in names]
        if not names:
            targets = f"the targets of '{dataset_name(key, loaders)}'"
            warn(f"{targets} do not say which metrics to compute: name them, fit(..., metrics=...)")
    module.metrics_on = partial(metrics_on, metrics)
    return replace(options, metrics=metrics)

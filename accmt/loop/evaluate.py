"""The evaluation loop: every validation dataset once, every sample once, values that do not depend on the hardware."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, broadcast_object_list, find_batch_size, send_to_device
from torch import Tensor
from torch import distributed as dist

from accmt.checkpoint.rng import untouched_random_state
from accmt.loop.hooks import noted
from accmt.loop.run import Run
from accmt.metrics.gather import Gatherer, gatherer_of
from accmt.metrics.metric import Metric
from accmt.rules.store import VALID_LOSS

_REPLICATED = (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


class EvaluationFailed(RuntimeError):
    """The main process could not compute a metric."""


def evaluate(run: Run) -> dict[str, dict[str, float]]:
    """Evaluate all validation datasets.

    for dataset in validation:
        for batch in dataset:
            outputs = validation_step(dataset, batch)
            add the loss and the arguments of each metric
        gather, compute
    broadcast the values

    Returns:
        Dataset -> metric -> value, the same on every process. The model is in training mode afterwards, and the random
        state is as if nothing had happened.
    """
    values: dict[str, dict[str, float]] = {}
    error: Exception | None = None
    with _inference(run):
        for key, loader in run.validation.loaders.items():
            meter = _LossMeter(run.device)
            gatherers = {metric: gatherer_of(metric, run.device) for metric in run.validation.metrics[key]}
            for batch in _batches(run, loader):
                outputs = _outputs(run, key, batch)
                meter.add(outputs["loss"], batch, key)
                for metric, gatherer in gatherers.items():
                    with noted(f"metric '{metric.name}' on '{key}'", run.state):
                        gatherer.add(_arguments(outputs, metric, key))
            values[key] = {VALID_LOSS: meter.mean()}
            error = _compute(values[key], gatherers, key, error)
    return _agreed(values, error)


@contextmanager
def _inference(run: Run) -> Iterator[None]:
    """Evaluation mode.

    Where processes hold replicas it is the bare model, because they see different numbers of batches, with the buffers
    (such as running statistics) of the main process, because that is the model that is saved.
    """
    module, prepared = run.module, run.module.model
    if run.accelerator.distributed_type in _REPLICATED:
        module.model = run.accelerator.unwrap_model(prepared)
        for buffer in module.model.buffers():
            dist.broadcast(buffer, src=0)
    training = module.model.training
    module.model.eval()
    try:
        with untouched_random_state(run.device), torch.no_grad():
            yield
    finally:
        module.model.train(training)
        module.model = prepared


def _batches(run: Run, loader: Any) -> Iterator[Any]:
    """The batches of a dataset, on the device, with the state telling where we are."""
    total = len(loader) if hasattr(loader, "__len__") and not _is_iterable(loader) else None
    run.state.val_step = 0
    for batch in loader:
        run.state.is_last_validation_batch = run.state.val_step + 1 == total
        yield send_to_device(batch, run.device, non_blocking=True) if run.stepper.places_batches else batch
        run.state.val_step += 1


def _is_iterable(loader: Any) -> bool:
    return isinstance(loader.dataset, torch.utils.data.IterableDataset)


def _outputs(run: Run, key: str, batch: Any) -> Mapping[str, Any]:
    run.hooks.on_before_validation_step(batch)
    with noted(f"{type(run.module).__name__}.validation_step on '{key}'", run.state):
        outputs = run.module.validation_step(key, batch)
    run.hooks.on_after_validation_step()
    if isinstance(outputs, Tensor):
        return {"loss": outputs}
    if not isinstance(outputs, Mapping):
        raise TypeError(f"validation_step for '{key}' must return a dictionary or a loss, not {type(outputs).__name__}")
    if "loss" not in outputs:
        raise KeyError(f"validation_step for '{key}' returned no 'loss'; it returned: {_listed(outputs)}")
    return outputs


def _arguments(outputs: Mapping[str, Any], metric: Metric, key: str) -> tuple[Any, ...]:
    for name in (metric.name, metric.main_metric):
        if name in outputs:
            given = outputs[name]
            return tuple(given) if isinstance(given, tuple | list) else (given,)
    raise KeyError(
        f"validation_step for '{key}' returned nothing for the metric '{metric.name}'; it returned: {_listed(outputs)}"
    )


def _compute(
    values: dict[str, float], gatherers: Mapping[Metric, Gatherer], key: str, error: Exception | None
) -> Exception | None:
    """Add the values of all metrics. An error is kept for later: it must not leave other processes waiting."""
    for metric, gatherer in gatherers.items():
        try:
            for name, value in (gatherer.values() or {}).items():
                values[name] = _number(value, metric, name)
            if PartialState().is_main_process and metric.main_metric not in values:
                raise KeyError(
                    f"the metric '{metric.name}' on '{key}' computed no '{metric.main_metric}'; give main_metric=..."
                )
        except Exception as raised:
            raised.add_note(f"raised in {type(metric).__name__} '{metric.name}' on '{key}'")
            error = error or raised
    return error


def _number(value: Any, metric: Metric, name: str) -> float:
    size = getattr(value, "numel", None)
    count = size() if callable(size) else getattr(value, "size", 1)
    if count != 1:
        raise ValueError(f"the metric '{metric.name}' computed '{name}' with {count} elements: a metric is one number")
    return float(value)


def _agreed(values: dict[str, dict[str, float]], error: Exception | None) -> dict[str, dict[str, float]]:
    """The values of the main process on every process, by one broadcast; an error there is an error everywhere."""
    if PartialState().num_processes > 1:
        shared = [values, None if error is None else f"{type(error).__name__}: {error}"]
        broadcast_object_list(shared)
        values = shared[0]  # type: ignore[assignment]
        if error is None and shared[1] is not None:
            raise EvaluationFailed(f"the main process failed: {shared[1]}")
    if error is not None:
        raise error
    return values


def _listed(outputs: Mapping[str, Any]) -> str:
    return ", ".join(map(str, outputs)) or "nothing"


class _LossMeter:
    """The mean loss over the samples of a dataset."""

    def __init__(self, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sums = torch.zeros(2, dtype=dtype, device=device)

    def add(self, loss: Any, batch: Any, key: str) -> None:
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"the loss of validation_step for '{key}' must be a scalar tensor, not {shape}")
        size = _batch_size(batch)
        self._sums[0] += loss.detach().reshape(()) * size
        self._sums[1] += size

    def mean(self) -> float:
        if PartialState().num_processes > 1:
            dist.all_reduce(self._sums)
        total, count = self._sums.tolist()
        return total / count if count else float("nan")


def _batch_size(batch: Any) -> int:
    try:
        size = find_batch_size(batch)
    except (TypeError, IndexError):
        size = None
    if size is None:
        size = len(batch) if isinstance(batch, Sequence) and not isinstance(batch, str) else 1
    return int(size)

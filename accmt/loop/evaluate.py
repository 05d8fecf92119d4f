"""The evaluation loop: every validation dataset once, every sample once, values that do not depend on the hardware."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch import distributed as dist

from accmt.checkpoint.object_state import attributes_of
from accmt.checkpoint.rng import untouched_random_state
from accmt.checkpoint.shards import reshard
from accmt.data.batch_size import samples_of
from accmt.data.device import DeviceTransfer
from accmt.data.validation import ValidationData
from accmt.distributed.collective import agreed, raise_on_all
from accmt.distributed.even_batches import in_step
from accmt.distributed.strategy import holds_replicas, shards_model
from accmt.loop.exclusive import evaluating
from accmt.loop.hooks import Hooks, loading, name_of_step, noted
from accmt.loop.means import RunningSum, mean_of, taken
from accmt.loop.out_of_memory import tried_again
from accmt.loop.step import kind_of
from accmt.metrics.gather import gatherer_of
from accmt.metrics.metric import FunctionMetric, Metric
from accmt.metrics.replicates import Replicated, Resampling
from accmt.module import AcceleratorModule
from accmt.rules.errors import nearest
from accmt.rules.store import VALID_LOSS, Replicates, dataset_name


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Parts of an evaluation; false without validation data.

    Attributes:
        module: The module, which knows its Accelerator and its state.
        model: The model that the module calls during the evaluation.
        loaders: Dataset -> the batches of this process.
        metrics: Dataset -> metrics.
        hooks: The callbacks.
        place: Moves batches to their device and precision.
        repeats: Retry a step once if it runs out of memory.
        replicated: The values that need replicates; None if none does.
        held_out: Dataset -> the batches of those that are evaluated after the training only.
    """

    module: AcceleratorModule
    model: nn.Module
    loaders: Mapping[str, ValidationData]
    metrics: Mapping[str, Sequence[Metric]]
    hooks: Hooks
    place: DeviceTransfer
    repeats: bool
    replicated: Replicated | None = None
    held_out: Mapping[str, ValidationData] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.loaders)

    def close(self) -> None:
        """Shut down the workers that load data, even if the traceback of an error still holds them."""
        for loader in (*self.loaders.values(), *self.held_out.values()):
            loader.close()


@dataclass(frozen=True, slots=True)
class Results:
    """Results of an evaluation.

    Attributes:
        values: Dataset -> metric -> value.
        replicates: Dataset -> metric -> replicates, of those that need them.
        notes: What the user should know about the replicates.
    """

    values: dict[str, dict[str, float]] = field(default_factory=dict)
    replicates: Replicates = field(default_factory=dict)
    notes: Sequence[str] = ()


def evaluate(evaluation: Evaluation) -> Results:
    """Evaluate all validation datasets.

    for dataset in validation:
        for batch in dataset:
            outputs = validation_step(dataset, batch)
            add the loss and the arguments of each metric
        gather, compute
    broadcast the values

    Returns:
        The results, the same on every process. Afterwards the model is in training mode, and the random state is
        unchanged.
    """
    values: dict[str, dict[str, float]] = {}
    replicates: dict[str, Mapping[str, tuple[float, ...]]] = {}
    notes: list[str] = []
    errors: list[Exception] = []
    with evaluating(), inference(evaluation.module, evaluation.model):
        for key, loader in evaluation.loaders.items():
            dataset = DatasetValues(evaluation, key)
            dataset.read(loader)
            values[key] = dataset.compute()
            errors += [*dataset.failures.values(), *dataset.mistakes]
            if found := dataset.replicates():
                replicates[key] = found
            notes += dataset.notes()
    raise_on_all(next(iter(errors), None))
    return agreed(Results(values, replicates, notes))


class MissingOutput(KeyError):
    """A value that rules or metrics need was not returned; shown as a sentence, not quoted as a key."""

    __str__ = Exception.__str__


class DatasetValues:
    """The loss and the metrics of a dataset, collected from its batches.

    Attributes:
        failures: The errors in computing metrics, by name. They are kept, so that no other process is left waiting.
        mistakes: The errors in what metrics computed.
    """

    def __init__(self, evaluation: Evaluation, key: str) -> None:
        self._evaluation, self._key, self._name = evaluation, key, dataset_name(key, evaluation.loaders)
        device = evaluation.module.device
        self._loss = RunningSum(device)
        batches = evaluation.loaders[key].length
        self._resampled = _resampled(evaluation, key)
        self._gatherers = {
            metric: gatherer_of(metric, device, batches, self._resampled.get(metric))
            for metric in evaluation.metrics[key]
        }
        losses = self._resampled.get(_LOSSES)
        self._losses = None if losses is None else gatherer_of(_LOSSES, device, batches, losses)
        self._samples = 0
        self.failures: dict[str, Exception] = {}
        self.mistakes: list[Exception] = []

    def read(self, loader: ValidationData, most: int | None = None) -> None:
        """Process the batches of this process, or the first ones."""
        for batch, counts in islice(batches_of(self._evaluation, loader), most):
            samples = samples_of(batch, loader.samples, self._evaluation.module) if counts else 0
            outputs = self.outputs(batch)
            if counts:
                self._add_loss(loss_of(outputs, self._name, samples), samples)
                self.collect(outputs)

    def _add_loss(self, loss: Tensor, samples: int) -> None:
        """Add the loss of a batch, or of each of its samples."""
        exact = torch.float32 if loss.device.type == "mps" else torch.float64
        self._loss.add(loss.mean(dtype=exact) if loss.ndim else loss, samples)
        if self._losses is not None:
            parts = len(loss) if loss.ndim else 1
            weights = torch.full((parts,), samples // parts, device=loss.device)
            self._losses.add((loss.reshape(parts).to(exact) * weights, weights))

    def outputs(self, batch: Any) -> Mapping[str, Any]:
        """Return what `validation_step` returns for a batch."""
        evaluation, name = self._evaluation, self._name
        module, hooks = evaluation.module, evaluation.hooks
        hooks.on_before_validation_step(batch)
        with noted(f"{name_of_step(module, 'validation_step')} on '{name}'", module.state, batch):
            outputs = tried_again(partial(module.validation_step, self._key, batch), lambda: evaluation.repeats)
        hooks.on_after_validation_step()
        if isinstance(outputs, Tensor):
            return {"loss": outputs}
        if not isinstance(outputs, Mapping):
            raise TypeError(f"validation_step for '{name}' must return a dictionary or a loss, not {kind_of(outputs)}")
        if "loss" not in outputs:
            near = nearest("loss", list(map(str, outputs)))
            meant = "" if near is None else f"; is '{near}' meant for it?"
            raise MissingOutput(
                f"validation_step for '{name}' returned no 'loss'; it returned: {_listed(outputs)}{meant}"
            )
        return outputs

    def collect(self, outputs: Mapping[str, Any]) -> None:
        """Collect the arguments of each metric."""
        for metric, gatherer in self._gatherers.items():
            with noted(f"metric '{metric.name}' on '{self._name}'", self._evaluation.module.state):
                gatherer.add(self.arguments(outputs, metric))

    def arguments(self, outputs: Mapping[str, Any], metric: Metric) -> tuple[Any, ...]:
        """Return the arguments of a metric."""
        for name in (metric.name, metric.main_metric):
            if name in outputs:
                given = outputs[name]
                return tuple(given) if isinstance(given, tuple | list) else (given,)
        near = nearest(metric.name, [str(name) for name in outputs if name != "loss"])
        meant = "" if near is None else f"; is '{near}' meant for it?"
        raise MissingOutput(
            f"validation_step for '{self._name}' returned nothing for the metric '{metric.name}'; "
            f"it returned: {_listed(outputs)}{meant}"
        )

    def compute(self) -> dict[str, float]:
        """Compute the loss and, on the main process, all metrics."""
        [(total, self._samples)] = taken([self._loss])
        values = {VALID_LOSS: mean_of(total, self._samples)}
        if self._losses is not None:
            self._losses.values()
        for metric, gatherer in self._gatherers.items():
            try:
                computed = gatherer.values()
            except Exception as error:
                self.failures[metric.name] = self._noted(error, metric)
                continue
            try:
                if PartialState().is_main_process:
                    add_values(values, computed or {}, metric, self._name)
            except Exception as error:
                self.mistakes.append(self._noted(error, metric))
        return values

    def replicates(self) -> dict[str, tuple[float, ...]]:
        """Return the replicates of the computed values, on the main process."""
        return {name: each for one in self._resampled.values() for name, each in one.replicates.items()}

    def notes(self) -> Iterator[str]:
        """Yield what the user should know about the replicates."""
        for metric, one in self._resampled.items():
            where = f"'{metric.name}' on '{self._name}'"
            if one.rows != self._samples:
                why = "samples, because validation_step returns one loss for a batch, not one for each of its samples"
                how = f"of {one.rows:,} batches, not of {self._samples:,} {why}"
                if metric is not _LOSSES:
                    how = f"of {one.rows:,} rows, not of {self._samples:,} samples: give it one row for each sample"
                yield f"the standard errors of {where} are those {how}"
            if one.unknown():
                why = "they are nan" if one.rows > 1 else "there is only one"
                why = why if one.error is None else f"{type(one.error).__name__}: {one.error}"
                yield f"{where} has no standard error, because most of its resamples give no value ({why})"

    def _noted(self, error: Exception, metric: Metric) -> Exception:
        error.add_note(f"raised in {type(metric).__name__} '{metric.name}' on '{self._name}'")
        return error


_LOSSES = FunctionMetric(VALID_LOSS, lambda sums, weights: (sums, weights), greater_is_better=False, per_sample=True)
"""The losses of the parts of a dataset that are resampled, times their numbers of samples, and these numbers."""


def _resampled(evaluation: Evaluation, key: str) -> dict[Metric, Resampling]:
    """Return the resamples of each metric that has values with replicates on a dataset."""
    if evaluation.replicated is None:
        return {}
    metrics = (_LOSSES, *evaluation.metrics[key])
    found = ((metric, evaluation.replicated.on(key, metric.directions)) for metric in metrics)
    return {metric: one for metric, one in found if one is not None}


@contextmanager
def inference(module: AcceleratorModule, model: nn.Module) -> Iterator[None]:
    """Switch the model and the other networks to evaluation mode in the block.

    Replicas use the buffers (such as running statistics) of the main process, because that is the model that is saved.
    """
    used, training = module.model, module._training_metrics
    module.model, module._training_metrics = model, None  # what an evaluation logs is not a training metric
    networks = [model, *attributes_of(module, model).networks.values()]
    if holds_replicas(module.accelerator):
        for buffer in (buffer for network in networks for buffer in network.buffers()):
            dist.broadcast(buffer, src=0)
    modes = [(part, part.training) for network in networks for part in network.modules()]
    for network in networks:
        network.eval()
    try:
        with untouched_random_state(module.device), torch.no_grad():
            yield
    finally:
        reshard(model)  # so that hooks that freeze something see the trained parameters
        for part, is_training in modes:
            part.training = is_training
        module.model, module._training_metrics = used, training


def batches_of(evaluation: Evaluation, loader: ValidationData) -> Iterator[tuple[Any, bool]]:
    """Yield the batches of a dataset on the device and whether each counts, and keep the state's counters current."""
    total = loader.length
    state, accelerator = evaluation.module.state, evaluation.module.accelerator
    state.val_step = 0
    shares = shards_model(accelerator) and accelerator.num_processes > 1
    batches = in_step(loader, total) if shares else ((batch, True) for batch in loader)
    for batch, counts in loading(batches, loader.name, state):
        state.is_last_validation_batch = state.val_step + 1 == total
        yield evaluation.place(batch), counts
        state.val_step += counts


def loss_of(outputs: Mapping[str, Any], dataset: str, samples: int) -> Tensor:
    """Return the loss of a batch as a scalar, or as one loss for each of its samples."""
    loss = outputs["loss"]
    if isinstance(loss, Tensor) and (loss.numel() == 1 or loss.shape == (samples,) != (0,)):
        return loss if loss.ndim == 1 and samples > 1 else loss.reshape(())
    shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
    raise ValueError(
        f"the loss of validation_step for '{dataset}' must be a scalar tensor, or one loss for each of the "
        f"{samples} samples of the batch, not {shape}"
    )


def add_values(values: dict[str, float], computed: Mapping[str, Any], metric: Metric, dataset: str) -> None:
    for name in metric.directions:
        if name not in computed:
            how = "give main_metric=..." if name == metric.main_metric else "its direction is declared"
            raise MissingOutput(f"the metric '{metric.name}' on '{dataset}' did not compute '{name}'; {how}")
    for name, value in computed.items():
        if name in values:
            raise ValueError(f"two metrics on '{dataset}' computed '{name}'; '{metric.name}' is the second of them")
        values[name] = _number(value, metric, name)


def _number(value: Any, metric: Metric, name: str) -> float:
    size = getattr(value, "numel", None)
    count = size() if callable(size) else getattr(value, "size", 1)
    if count != 1:
        text = f"the metric '{metric.name}' computed '{name}' with {count} elements: a metric is one number"
        raise ValueError(f"{text}; if they are scores whose mean is the metric, give it per_sample=True")
    try:
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError):
        text = f"the metric '{metric.name}' computed '{name}' as a {type(value).__name__}: a metric is one number"
        raise TypeError(text) from None


def _listed(outputs: Mapping[str, Any]) -> str:
    return ", ".join(map(str, outputs)) or "nothing"

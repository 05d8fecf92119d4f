"""The evaluation loop: every validation dataset once, every sample once, values that do not depend on the hardware."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
from accmt.metrics.metric import Metric
from accmt.module import AcceleratorModule
from accmt.rules.errors import nearest
from accmt.rules.store import VALID_LOSS, dataset_name


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
    """

    module: AcceleratorModule
    model: nn.Module
    loaders: Mapping[str, ValidationData]
    metrics: Mapping[str, Sequence[Metric]]
    hooks: Hooks
    place: DeviceTransfer
    repeats: bool

    def __bool__(self) -> bool:
        return bool(self.loaders)

    def close(self) -> None:
        """Shut down the workers that load data, even if the traceback of an error still holds them."""
        for loader in self.loaders.values():
            loader.close()


def evaluate(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """Evaluate all validation datasets.

    for dataset in validation:
        for batch in dataset:
            outputs = validation_step(dataset, batch)
            add the loss and the arguments of each metric
        gather, compute
    broadcast the values

    Returns:
        Dataset -> metric -> value, the same on every process. Afterwards the model is in training mode, and the random
        state is unchanged.
    """
    values: dict[str, dict[str, float]] = {}
    errors: list[Exception] = []
    with evaluating(), inference(evaluation.module, evaluation.model):
        for key, loader in evaluation.loaders.items():
            dataset = DatasetValues(evaluation, key)
            dataset.read(loader)
            values[key] = dataset.compute()
            errors += [*dataset.failures.values(), *dataset.mistakes]
    raise_on_all(next(iter(errors), None))
    return agreed(values)


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
        self._gatherers = {metric: gatherer_of(metric, device, batches) for metric in evaluation.metrics[key]}
        self.failures: dict[str, Exception] = {}
        self.mistakes: list[Exception] = []

    def read(self, loader: ValidationData, most: int | None = None) -> None:
        """Process the batches of this process, or the first ones."""
        for batch, counts in islice(batches_of(self._evaluation, loader), most):
            samples = samples_of(batch, loader.samples, self._evaluation.module) if counts else 0
            outputs = self.outputs(batch)
            if counts:
                self._loss.add(loss_of(outputs, self._name), samples)
                self.collect(outputs)

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
        values = {VALID_LOSS: mean_of(*taken([self._loss])[0])}
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

    def _noted(self, error: Exception, metric: Metric) -> Exception:
        error.add_note(f"raised in {type(metric).__name__} '{metric.name}' on '{self._name}'")
        return error


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


def loss_of(outputs: Mapping[str, Any], dataset: str) -> Tensor:
    loss = outputs["loss"]
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"the loss of validation_step for '{dataset}' must be a scalar tensor, not {shape}")
    return loss.reshape(()) if loss.ndim else loss


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
        raise ValueError(f"the metric '{metric.name}' computed '{name}' with {count} elements: a metric is one number")
    try:
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError):
        text = f"the metric '{metric.name}' computed '{name}' as a {type(value).__name__}: a metric is one number"
        raise TypeError(text) from None


def _listed(outputs: Mapping[str, Any]) -> str:
    return ", ".join(map(str, outputs)) or "nothing"

"""Averages of the models that rules with `keep k average` keep, made when the training ends.

for each such rule:
    average the weights of its models
    estimate the statistics of batch normalization on training batches
    evaluate, and save the average if it beats the best of the models
    put the trained weights back

An average that was interrupted is made by the next run: until its verdict is recorded, nothing else refers to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.text import Text
from torch import Tensor, nn

from accmt.checkpoint.loading import load_weights, read_whole
from accmt.checkpoint.object_state import attributes_of
from accmt.checkpoint.rng import untouched_random_state
from accmt.checkpoint.saved_models import AverageRecord
from accmt.checkpoint.stateful import Mismatch
from accmt.distributed.collective import Failed, agreed, from_each, from_main, on_main
from accmt.distributed.strategy import whole_weights
from accmt.distributed.weight_names import unwrapped
from accmt.loop.evaluate import evaluate
from accmt.loop.evaluation_step import record
from accmt.loop.run import Run
from accmt.loop.saved_evaluation import weights_put_back
from accmt.module import AcceleratorModule
from accmt.notices import warn
from accmt.rules import Decision, Observation, Outcome, Progress, SavingRule, Verdict

BATCHES = 100
"""Number of training batches of each process, the first of the next epoch, that estimate the statistics of batch
normalization."""

_NORMALIZATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def settle_averages(run: Run) -> None:
    """Make the averages that are not made yet, and record the verdicts; without saved models, there are none."""
    for rule in run.engine.rules.savings if run.savings is not None else ():
        if rule.averages and run.engine.states[rule.name].kept:
            try:
                progress, verdict = _settled(run, rule)
            except (Failed, Mismatch, OSError, ValueError) as error:
                warn(f"{rule.name}: the average of its models could not be made, running again tries it again: {error}")
                continue
            record(run, Decision(progress, average=verdict))
            if verdict.outcome is Outcome.SAVED:
                run.state.model_savings[rule.name] = verdict.values
            run.display.show(Text(str(verdict)))


def _settled(run: Run, rule: SavingRule) -> tuple[Progress, Verdict]:
    """Return the verdict on the average of the models of a rule: the recorded one, or that of an average made now."""
    assert run.savings is not None
    kept, name = run.engine.states[rule.name].kept, rule.name
    progress = run.position.progress(agreed(run.position.stopwatch.elapsed()))
    known = from_main(partial(run.savings.average_of, rule, kept))
    if known is not None:
        return progress, known.verdict
    if len(kept) == 1:
        return progress, Verdict(name, (), None, Outcome.INACTIVE, "one model is kept: no average is made", kept=kept)
    folder = run.records.history.path.parent / rule.folder
    with weights_put_back(run.evaluation):
        weights, beside = from_each(partial(_average, [folder / entry.folder for entry in kept]))[0]
        from_each(partial(load_weights, run.module, weights, beside, folder))
        _estimate_statistics(run)
        found = evaluate(run.evaluation)
        observation = Observation(progress, found.values, replicates=found.replicates)
        verdict = run.engine.judge_average(name, observation)
        model = whole_weights(run.checkpointer.model.model, run.module.accelerator)
        trained = run.checkpointer.model.kept.trained(run.stepper.held())
        about = AverageRecord(1, kept, verdict, found.values)
        now = progress.evaluation, progress.step, progress.epoch
        on_main(partial(run.savings.save_average, rule, about, now, (model, trained)))
    return progress, verdict


def _average(folders: Iterable[Path]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the averaged weights of saved models, and those of the networks alongside them."""
    sums = _Sums(), _Sums()
    for folder in folders:
        for added, weights in zip(sums, read_whole(folder)[1:], strict=True):
            added.add(folder, weights)
    return sums[0].means(), sums[1].means()


class _Sums:
    """Sums of weights in float64. What has no floating point is that of the first, the best model."""

    def __init__(self) -> None:
        self._first: dict[str, Any] = {}
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, folder: Path, weights: Mapping[str, Any]) -> None:
        self._count += 1
        if self._count == 1:
            self._first = dict(weights)
            self._sums = {name: value.double() for name, value in weights.items() if _is_floating(value)}
            return
        if _shapes(weights) != _shapes(self._first):
            raise Mismatch(f"{folder} holds another model than the best one")
        for name, value in self._sums.items():
            value += weights[name]

    def means(self) -> dict[str, Any]:
        means = {name: (value / self._count).to(self._first[name].dtype) for name, value in self._sums.items()}
        return {**self._first, **means}


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _shapes(weights: Mapping[str, Any]) -> dict[str, Any]:
    return {name: getattr(value, "shape", None) for name, value in weights.items()}


def normalizations(module: AcceleratorModule) -> list[nn.Module]:
    """Return the layers of batch normalization that keep statistics, in all networks of a module."""
    model = unwrapped(module.model)
    networks = [model, *attributes_of(module, model).networks.values()]
    layers = (part for network in networks for part in network.modules() if isinstance(part, _NORMALIZATIONS))
    return [layer for layer in layers if layer.track_running_stats]


def _estimate_statistics(run: Run) -> None:
    """Estimate the statistics of batch normalization on training batches, as `torch.optim.swa_utils.update_bn`
    does: each is the plain mean over the batches."""
    layers: list[Any] = [layer for layer in normalizations(run.module) if layer.training]  # others are frozen
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
    try:
        with untouched_random_state(run.device), torch.no_grad(), _logging_nothing(run.module):
            from_each(partial(_pass_through, run))
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def _pass_through(run: Run) -> None:
    batches = (batch for window in run.data.windows(run.position.epoch) for _, batch in window.batches)
    for batch in islice(batches, BATCHES):
        run.module.training_step(run.stepper.place(batch))


@contextmanager
def _logging_nothing(module: AcceleratorModule) -> Iterator[None]:
    names = ("_training_metrics", "_logged", "_log_every")
    own = {name: getattr(module, name) for name in names}
    try:
        for name in names:
            setattr(module, name, None)
        yield
    finally:
        for name, value in own.items():
            setattr(module, name, value)

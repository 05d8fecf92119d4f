"""Evaluation of saved models at the end of a training, with the trained weights put back afterwards."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from accmt.checkpoint.loading import load_saving
from accmt.checkpoint.object_state import attributes_of
from accmt.distributed.collective import from_each
from accmt.distributed.weight_names import unwrapped
from accmt.loop.evaluate import Evaluation, evaluate


def evaluate_saved(evaluation: Evaluation, folder: Path) -> dict[str, dict[str, float]]:
    """Evaluate a saved model on the datasets of an evaluation; must be called on all processes.

    The model must not be sharded (`strategy.shards_model`, DeepSpeed). Its weights are afterwards as before.

    Args:
        evaluation: The evaluation, whose module and model receive the saved weights meanwhile.
        folder: The folder of the saved model, on every process.

    Returns:
        Dataset -> metric -> value, the same on every process.
    """
    with weights_put_back(evaluation):
        from_each(partial(load_saving, folder, evaluation.module))
        return evaluate(evaluation)


@contextmanager
def weights_put_back(evaluation: Evaluation) -> Iterator[None]:
    """Put all weights, buffers and modes of the networks of a module back after the block; they wait in main memory."""
    model = unwrapped(evaluation.model)
    found = attributes_of(evaluation.module, model)
    tensors = [*model.parameters(), *model.buffers(), *found.tensors()]
    kept = [tensor.detach().to("cpu", copy=True) for tensor in tensors]
    networks = [model, *found.networks.values()]
    extra = [(network, copy.deepcopy(_extra_state(network))) for network in networks]
    modes = [(part, part.training) for network in networks for part in network.modules()]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, kept, strict=True):
                tensor.copy_(value)
        for network, state in extra:
            if state:
                network.load_state_dict(state, strict=False)
        for part, is_training in modes:
            part.training = is_training


def _extra_state(network: nn.Module) -> dict[str, object]:
    """Return the state of a network that is not tensors, from `get_extra_state`."""
    return {name: value for name, value in network.state_dict().items() if not isinstance(value, Tensor)}

"""The trained weights, put back after saved models were evaluated at the end of a training."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from accmt.checkpoint.object_state import attributes_of
from accmt.distributed.weight_names import unwrapped
from accmt.loop.evaluate import Evaluation


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

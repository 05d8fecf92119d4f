"""DistributedDataParallel sums gradients in buckets, and after its first step rearranges them by the order in which
gradients arrived. With three or more processes, another arrangement sums in another order and rounds differently: a
resumed training would not end bit by bit like an uninterrupted one. So that step is made in advance, without data.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from accmt._compat import is_watched

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def settle_buckets(model: nn.Module) -> None:
    """Make a replicated model arrange its gradients permanently, as if they arrived in the reverse order of its
    parameters. Call it on all processes. Neither weights nor gradients change.

    Models are left alone if their buckets do not change (`find_unused_parameters`) or are learned from the first step
    (a static graph), if they have sparse gradients, or if hooks watch their gradients, which would notice.
    """
    if not isinstance(model, DistributedDataParallel) or model.static_graph or model.find_unused_parameters:
        return
    own = model.module
    parameters = [parameter for parameter in own.parameters() if parameter.requires_grad]
    is_sparse = any(isinstance(part, _EMBEDDINGS) and part.sparse for part in own.modules())
    if is_sparse or any(map(is_watched, parameters)):
        return
    gradients = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        model.module = _Touch(own, parameters)
        touched = model()
        torch.autograd.backward(touched, list(map(torch.ones_like, touched)))
    finally:
        model.module = own
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient


def wrap_again(model: DistributedDataParallel) -> None:
    """Make a replicated model recognize which of its parameters are trained now, which it learns only when it is
    created. It remains the same object, with the same processes. Call it on all processes, between two steps or
    batches."""
    if not any(parameter.requires_grad for parameter in model.module.parameters()):
        model.require_backward_grad_sync = False  # nothing to average, and nothing to wait for
        return
    is_training = model.training
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # about the arguments of the first wrapper
        new = DistributedDataParallel(
            model.module,
            device_ids=model.device_ids,
            output_device=model.output_device,
            process_group=model.process_group,
            broadcast_buffers=model.broadcast_buffers,
            find_unused_parameters=model.find_unused_parameters,
            gradient_as_bucket_view=model.gradient_as_bucket_view,
            static_graph=model.static_graph,
        )
    model.__dict__.update(new.__dict__)
    model.training = is_training
    settle_buckets(model)


class _Touch(nn.Module):
    """Stand-in for a model: it depends on the model's parameters, and gives them gradients of zeros."""

    def __init__(self, model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.model = model  # the wrapper looks for its buffers here
        self._touched = parameters

    def forward(self) -> list[Tensor]:
        return [parameter.flatten()[:0].sum() for parameter in self._touched]

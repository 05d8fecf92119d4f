"""DistributedDataParallel sums gradients in buckets, and after its first step it arranges these anew, by the order in
which the gradients came. From three processes on another arrangement sums in another order, and rounds otherwise: a
training that was continued would not end bit by bit as one that was not. So that step is made before, on nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def settle_buckets(model: nn.Module) -> None:
    """Let a model that is replicated arrange its gradients for good: as if they came in the reverse order of its
    parameters. Call it on all processes. Neither weights nor gradients change.

    Models stay as they are whose buckets do not change (a search for parameters without use) or are learned from what
    the first step does (a static graph), that have sparse gradients, or whose gradients hooks watch: they would see it.
    """
    if not isinstance(model, DistributedDataParallel) or model.static_graph or model.find_unused_parameters:
        return
    own = model.module
    parameters = [parameter for parameter in own.parameters() if parameter.requires_grad]
    is_sparse = any(isinstance(part, _EMBEDDINGS) and part.sparse for part in own.modules())
    if is_sparse or any(map(_is_watched, parameters)):
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
    """Let a replicated model know which of its parameters are trained now: it learns that when it is made. It stays the
    same object, and the processes stay the same. Call it on all processes, between two steps or batches."""
    if not any(parameter.requires_grad for parameter in model.module.parameters()):
        model.require_backward_grad_sync = False  # nothing to average, and nothing to wait for
        return
    is_training = model.training
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # of arguments that are those of the first wrapper
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
    """In the place of a model: depends on its parameters, and gives them gradients of zeros."""

    def __init__(self, model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.model = model  # whose buffers are looked for here
        self._touched = parameters

    def forward(self) -> list[Tensor]:
        return [parameter.flatten()[:0].sum() for parameter in self._touched]


def _is_watched(parameter: Tensor) -> bool:
    return bool(parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None))

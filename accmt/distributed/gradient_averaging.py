"""Averaging gradients over processes, where no wrapper of the model does it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch import distributed as dist

from accmt.distributed.collective import everywhere

_UNUSED, _DENSE, _SPARSE = 0, 1, 2


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Average the gradients over all processes.

    A parameter not used in the loss of one process counts as zeros there; one not used in any gets no gradient.
    """
    if not parameters:
        return
    kinds = torch.tensor([_kind(parameter) for parameter in parameters], dtype=torch.uint8, device=parameters[0].device)
    dist.all_reduce(kinds, op=dist.ReduceOp.MAX)
    by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter, kind in zip(parameters, kinds.tolist(), strict=True):
        if kind == _SPARSE:
            parameter.grad = _sparse_mean(parameter)
        elif kind == _DENSE:
            by_dtype.setdefault(parameter.dtype, []).append(parameter)
    for group in by_dtype.values():
        _average_dense(group)


def _average_dense(parameters: Sequence[nn.Parameter]) -> None:
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    means = torch.split(flat, [gradient.numel() for gradient in gradients])
    for parameter, gradient, mean in zip(parameters, gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))
        parameter.grad = gradient


def _sparse_mean(parameter: nn.Parameter) -> Tensor:
    """Average sparse gradients (of rows, as embeddings have them); the mean is sparse too."""
    own = _rows(parameter)
    parts = everywhere(lambda: (own.indices().cpu(), own.values().cpu()))  # processes have different numbers of rows
    indices, values = (torch.cat(part, dim) for part, dim in zip(zip(*parts, strict=True), (1, 0), strict=True))
    total = torch.sparse_coo_tensor(indices, values, parameter.shape, device=parameter.device).coalesce()
    return total / len(parts)


def _rows(parameter: nn.Parameter) -> Tensor:
    gradient = parameter.grad
    if gradient is None:
        return torch.zeros_like(parameter).to_sparse(1).coalesce()
    return (gradient if gradient.is_sparse else gradient.to_sparse(1)).coalesce()


def _kind(parameter: nn.Parameter) -> int:
    if parameter.grad is None:
        return _UNUSED
    return _SPARSE if parameter.grad.is_sparse else _DENSE

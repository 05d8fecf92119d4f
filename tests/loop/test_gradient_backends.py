"""Gradients are clipped and reset as torch does it, bit for bit, at a lower cost."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from torch import nn

from accmt.loop.gradient_backends import updates_of

ALONE = SimpleNamespace(scaler=None, distributed_type=DistributedType.NO, no_sync=nullcontext)


def backend(optimizer):
    return updates_of(ALONE, nn.Linear(1, 1), SimpleNamespace(optimizer=optimizer))


def parameters(*dtypes, gradients=True):
    generator = torch.Generator().manual_seed(0)
    made = [nn.Parameter(torch.randn(7, 5, generator=generator).to(dtype)) for dtype in dtypes]
    for number, parameter in enumerate(made):
        if gradients and number != 1:
            parameter.grad = torch.randn(7, 5, generator=generator).to(parameter.dtype)
    return made


class Scaled(torch.Tensor):
    """A kind of tensor that torch's functions may treat in its own way."""


def subclassed():
    made = parameters(torch.float32, torch.float32, torch.float32)
    made[0].grad = made[0].grad.as_subclass(Scaled)
    return made


def without_gradients():
    return parameters(torch.float32, gradients=False)


@pytest.mark.parametrize("limit", [0.5, 1e3, float("inf"), 0])
@pytest.mark.parametrize(
    "make",
    [
        lambda: parameters(torch.float32, torch.float32, torch.float32),
        lambda: parameters(torch.bfloat16, torch.bfloat16, torch.bfloat16),
        lambda: parameters(torch.float32, torch.float32, torch.float64),
        subclassed,
        without_gradients,
    ],
    ids=["alike", "bfloat16", "mixed", "subclass", "none"],
)
def test_gradients_are_clipped_as_by_torch(make, limit):
    own, torchs = make(), make()
    norm = backend(torch.optim.SGD(own, lr=1.0)).clip(own, limit)
    expected = nn.utils.clip_grad_norm_(torchs, limit)
    assert torch.equal(norm, expected)
    assert norm.dtype == expected.dtype
    for one, other in zip(own, torchs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=0)


def test_gradients_that_are_not_finite_are_clipped_as_by_torch():
    own, torchs = parameters(torch.float32), parameters(torch.float32)
    for [one] in (own, torchs):
        one.grad[0, 0] = float("nan")
    assert backend(torch.optim.SGD(own, lr=1.0)).clip(own, 1.0).isnan()
    nn.utils.clip_grad_norm_(torchs, 1.0)
    torch.testing.assert_close(own[0].grad, torchs[0].grad, rtol=0, atol=0, equal_nan=True)


def test_gradients_are_reset_to_none_or_to_zero():
    made = parameters(torch.float32, torch.float32)
    zero_grad = backend(torch.optim.SGD(made, lr=1.0)).zero_grad
    zero_grad(set_to_none=False)
    assert made[0].grad.count_nonzero() == 0
    zero_grad()
    assert made[0].grad is None


def test_groups_added_later_are_reset_too():
    first, later = parameters(torch.float32), parameters(torch.float32)
    optimizer = torch.optim.SGD(first, lr=1.0)
    zero_grad = backend(optimizer).zero_grad
    optimizer.add_param_group({"params": later})
    zero_grad()
    assert later[0].grad is None


def test_an_optimizer_that_resets_gradients_in_its_own_way_does_so():
    class Counting(torch.optim.SGD):
        resets = 0

        def zero_grad(self, set_to_none=True):
            self.resets += 1
            super().zero_grad(set_to_none)

    optimizer = Counting(parameters(torch.float32), lr=1.0)
    backend(optimizer).zero_grad()
    assert optimizer.resets == 1

"""pad: what a list, a tuple or a single tensor becomes, and how every wrong combination is refused."""

import math
from itertools import product

import numpy
import pytest
import torch

from accmt.padding import pad


def t(*values):
    return torch.tensor(values)


def same(found, expected):
    """Whether both are the same tensor, or containers of one kind with the same tensors."""
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert found.tolist() == expected.tolist()
    else:
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)


@pytest.mark.proves("AcceleratorModule.pad(tensor)")
def test_a_single_tensor_is_padded_to_max_length():
    same(pad(t(1, 2), 0, max_length=4), t(1, 2, 0, 0))
    same(pad(t(1, 2), 0, "max_length", 4), t(1, 2, 0, 0))
    same(pad(t(1, 2), -100, "max_length", 4, "left"), t(-100, -100, 1, 2))
    same(pad(t(1, 2), 0, max_length=2), t(1, 2))


@pytest.mark.proves("AcceleratorModule.pad(tensor)")
@pytest.mark.parametrize("container", [list, tuple])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [t(1, 2, 3), t(4, 9, 9)]),
        ({"padding": "longest"}, [t(1, 2, 3), t(4, 9, 9)]),
        ({"padding": "longest", "side": "left"}, [t(1, 2, 3), t(9, 9, 4)]),
        ({"padding": "max_length", "max_length": 4}, [t(1, 2, 3, 9), t(4, 9, 9, 9)]),
        ({"padding": "max_length", "max_length": 4, "side": "left"}, [t(9, 1, 2, 3), t(9, 9, 9, 4)]),
        ({"padding": "max_length", "max_length": 3}, [t(1, 2, 3), t(4, 9, 9)]),
        ({"max_length": 100}, [t(1, 2, 3), t(4, 9, 9)]),
        ({"padding": "longest", "max_length": 1}, [t(1, 2, 3), t(4, 9, 9)]),
    ],
)
def test_a_list_or_tuple_stays_one(container, arguments, expected):
    given = container([t(1, 2, 3), t(4)])
    same(pad(given, 9, **arguments), container(expected))
    same(given, container([t(1, 2, 3), t(4)]))


@pytest.mark.proves("AcceleratorModule.pad(padding)")
def test_every_combination_against_a_loop_by_hand():
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.rand(2, length, generator=generator) for length in (3, 1, 5)]
    for container, padding, side, op in product(
        (list, tuple), ("longest", "max_length", None), ("left", "right"), ("stack", "cat", len, None)
    ):
        length = 7 if padding == "max_length" else 5
        by_hand = []
        for tensor in tensors:
            filled = torch.full((2, length), -1.0)
            start = length - tensor.shape[1] if side == "left" else 0
            filled[:, start : start + tensor.shape[1]] = tensor
            by_hand.append(filled)
        operation = {"stack": torch.stack, "cat": torch.cat}.get(op, op)
        expected = operation(by_hand) if operation else container(by_hand)
        found = pad(container(tensors), -1.0, padding, 7 if padding == "max_length" else None, side, op)
        assert found == expected if op is len else same(found, expected) is None


def test_operations():
    tensors = [t(1, 2), t(3)]
    same(pad(tensors, 0, op="stack"), torch.tensor([[1, 2], [3, 0]]))
    same(pad(tensors, 0, op="cat"), t(1, 2, 3, 0))
    same(pad(tensors, 0, op=torch.vstack), torch.tensor([[1, 2], [3, 0]]))
    received = []
    assert pad(tuple(tensors), 0, op=received.append) is None
    same(received, [(t(1, 2), t(3, 0))])


def test_only_the_last_dimension_is_padded_and_the_others_may_differ():
    tensors = [torch.ones(2, 3, 1), torch.ones(4, 2)]
    assert [list(padded.shape) for padded in pad(tensors, 0)] == [[2, 3, 2], [4, 2]]
    assert list(pad([torch.ones(2, 3), torch.ones(5, 1)], 0, op="cat").shape) == [7, 3]
    assert pad([torch.ones(2, 0), torch.ones(2, 1)], 3.0)[0].tolist() == [[3.0], [3.0]]


def test_nothing_to_pad():
    assert pad([], 0) == []
    assert pad((), 0, "max_length", 3) == ()
    given = torch.ones(2)
    padded = pad([given], 0)[0]
    padded += 1
    assert given.tolist() == [1.0, 1.0]


def test_gradients_flow_through():
    weight = torch.ones(2, requires_grad=True)
    pad([weight, torch.ones(3)], 0.0, op="stack").sum().backward()
    assert weight.grad.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        (torch.int64, 2.0, [2]),
        (torch.int64, numpy.int64(3), [3]),
        (torch.bool, False, [False]),
        (torch.bool, 1, [True]),
        (torch.uint8, 255, [255]),
        (torch.float16, -math.inf, [-math.inf]),
        (torch.float32, 0.5, [0.5]),
        (torch.complex64, 0.5, [0.5 + 0j]),
    ],
)
def test_values_keep_the_dtype(dtype, value, expected):
    padded = pad(torch.empty(0, dtype=dtype), value, max_length=1)
    assert padded.dtype == dtype
    assert padded.tolist() == expected


@pytest.mark.parametrize(
    ("dtype", "value", "said"),
    [
        (torch.int64, 0.5, "value is 0.5, which tensor cannot hold: it is of torch.int64"),
        (torch.int64, math.nan, "value is nan, which tensor cannot hold: it is of torch.int64"),
        (torch.uint8, -100, "value is -100, which tensor cannot hold: it is of torch.uint8"),
        (torch.bool, 2, "value is 2, which tensor cannot hold: it is of torch.bool"),
        (torch.float16, -1e9, "value is -1000000000.0, which tensor cannot hold: it is of torch.float16"),
    ],
)
def test_values_that_the_dtype_cannot_hold(dtype, value, said):
    with pytest.raises(ValueError, match="cannot hold") as raised:
        pad(torch.ones(1, dtype=dtype), value, max_length=2)
    assert str(raised.value) == f"pad: {said}"


ONES = [torch.ones(2), torch.ones(3)]


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        ((5, 0), TypeError, "tensor must be a tensor, or a list or tuple of tensors, not 5 (int)"),
        (
            ((tensor for tensor in ()), 0),
            TypeError,
            "tensor must be a tensor, or a list or tuple of tensors, not <generator ob... at ADDRESS> (generator)",
        ),
        (([ONES[0], [1]], 0), TypeError, "tensor[1] must be a tensor, not [1] (list)"),
        ((ONES, "0"), TypeError, "value must be a number, not '0' (str)"),
        ((ONES, None), TypeError, "value must be a number, not None"),
        (
            ((ONES[0], torch.tensor(1.0)), 0),
            ValueError,
            "tensor[1] is a scalar and has no dimension to pad: give it one with unsqueeze(0)",
        ),
        ((ONES, 0, "longst"), ValueError, 'padding must be "longest", "max_length" or None, not \'longst\' (str)'),
        ((ONES, 0, True), ValueError, 'padding must be "longest", "max_length" or None, not True (bool)'),
        (
            (ONES[0], 0, "longest"),
            ValueError,
            'padding is "longest", and a single tensor can only be padded to a max_length',
        ),
        (
            (ONES[0], 0),
            ValueError,
            'max_length is missing. Give it, or a list or tuple of tensors with padding="longest"',
        ),
        (
            (ONES, 0, "max_length"),
            ValueError,
            'max_length is missing. Give it, or a list or tuple of tensors with padding="longest"',
        ),
        ((ONES, 0, "max_length", "9"), ValueError, "max_length must be a whole number from 0, not '9' (str)"),
        ((ONES, 0, "max_length", -1), ValueError, "max_length must be a whole number from 0, not -1 (int)"),
        ((ONES, 0, "max_length", True), ValueError, "max_length must be a whole number from 0, not True (bool)"),
        (
            (ONES, 0, "max_length", 2),
            ValueError,
            "tensor[1] has the length 3, which is more than max_length=2: cut it before, such as by tensor[..., :2]",
        ),
        (
            (ONES[0], 0, None, 1),
            ValueError,
            "tensor has the length 2, which is more than max_length=1: cut it before, such as by tensor[..., :1]",
        ),
        ((ONES, 0, None, None, "middle"), ValueError, 'side must be "right" or "left", not \'middle\' (str)'),
        (
            (ONES, 0, None, None, "right", "sum"),
            ValueError,
            'op must be "stack", "cat", a function or None, not \'sum\' (str)',
        ),
        (
            (ONES[0], 0, None, 3, "right", "stack"),
            ValueError,
            "op is given with a single tensor; it is for the tensors of a list or tuple",
        ),
        (([], 0, None, None, "right", "cat"), ValueError, 'there are no tensors for op="cat"'),
        (
            ([torch.ones(2, 1), torch.ones(3, 2)], 0, None, None, "right", "stack"),
            ValueError,
            'op="stack" needs tensors of one shape; padded, they have the shapes [2, 2], [3, 2]',
        ),
        (
            ([torch.ones(2, 1, 1), torch.ones(2, 3, 1)], 0, None, None, "right", "cat"),
            ValueError,
            'op="cat" needs tensors of one shape but for the first dimension; padded, they have the shapes '
            "[2, 1, 1], [2, 3, 1]",
        ),
        (
            ([torch.ones(1), torch.ones(2, 1)], 0, None, None, "right", "cat"),
            ValueError,
            'op="cat" needs tensors of one shape but for the first dimension; padded, they have the shapes [1], [2, 1]',
        ),
    ],
)
def test_what_is_refused(arguments, kind, said):
    with pytest.raises(kind) as raised:
        pad(*arguments)
    message, expected = str(raised.value), f"pad: {said}"
    if "ADDRESS" in expected:
        before, after = expected.split("...")[0], expected.split("ADDRESS")[1]
        assert message.startswith(before)
        assert message.endswith(after)
    else:
        assert message == expected

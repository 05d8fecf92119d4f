"""What is drawn after a restore is what would have been drawn."""

import random

import numpy as np
import pytest
import torch

from accmt.checkpoint.rng import random_state, set_random_state, untouched_random_state
from accmt.checkpoint.tensor_files import read_tensors, write_tensors

CPU = torch.device("cpu")


def draw(count=1400):
    """From all generators, odd numbers of normal values among it, and more than one block of the Mersenne twister."""
    return (
        [random.random() for _ in range(count)],
        [random.gauss(0, 1) for _ in range(3)],
        random.getrandbits(100),
        np.random.rand(count).tolist(),
        np.random.randn(3).tolist(),
        np.random.permutation(20).tolist(),
        torch.rand(count).tolist(),
        torch.randn(3).tolist(),
        torch.randperm(20).tolist(),
        torch.empty(3, dtype=torch.float64).normal_().tolist(),
    )


@pytest.fixture(autouse=True)
def _seeds():
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("before", [0, 1, 700])
def test_restored_exactly_through_a_file(tmp_path, cached, before):
    draw(before)
    for _ in range(1 if cached else 2):
        random.gauss(0, 1)
        np.random.randn()
        torch.randn(1)
    assert (random.getstate()[2] is not None) == (np.random.get_state()[3] == 1)
    write_tensors(tmp_path / "rng.safetensors", random_state(CPU))
    expected = draw()
    draw(13)
    random.gauss(0, 1)
    np.random.randn()
    set_random_state(read_tensors(tmp_path / "rng.safetensors"), CPU)
    assert draw() == expected


def test_a_state_is_a_copy():
    state = random_state(CPU)
    expected = draw()
    draw()
    set_random_state(state, CPU)
    assert draw() == expected
    set_random_state(state, CPU)
    assert draw() == expected


def test_a_block_that_draws_leaves_no_trace():
    random.gauss(0, 1)
    expected = []
    with untouched_random_state(CPU):
        expected.append(draw())
    expected.append(draw())
    assert expected[0] == expected[1]


def test_nor_does_one_that_raises():
    state = random.getstate()

    def fails():
        with untouched_random_state(CPU):
            draw()
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert random.getstate() == state

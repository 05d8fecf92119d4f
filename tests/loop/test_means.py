"""The mean training loss of intervals: exact, also over a resume in the middle of one."""

import copy
import json
import math
import random

import pytest
import torch

from accmt.loop.means import LossMeter

CPU = torch.device("cpu")


def meter_of(*losses):
    meter = LossMeter(CPU)
    for loss in losses:
        meter.add(torch.tensor(loss))
    return meter


def test_means_of_two_intervals_that_end_at_different_times():
    meter = meter_of(1.0, 2.0)
    assert meter.since_log() == 1.5
    meter.add(torch.tensor(6.0))
    assert meter.since_log() == 6
    assert meter.since_evaluation() == 3
    meter.add(torch.tensor(8.0))
    assert meter.since_evaluation() == 8
    assert meter.since_log() == 8


def test_nothing_is_nan():
    meter = meter_of()
    assert math.isnan(meter.since_log())
    meter = meter_of(1.0)
    meter.since_log()
    assert math.isnan(meter.since_log())
    assert meter.since_evaluation() == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_seen_and_gone_with_its_interval(bad):
    meter = meter_of(1.0, bad)
    assert repr(meter.since_log()) == repr(bad)
    meter.add(torch.tensor(3.0))
    assert meter.since_log() == 3
    assert repr(meter.since_evaluation()) == repr(bad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_sums_do_not_lose_small_losses(dtype):
    """In half precision a sum of 4096 ones would stay at 2048."""
    meter = LossMeter(CPU)
    for _ in range(5000):
        meter.add(torch.tensor(1.0, dtype=dtype))
    meter.add(torch.tensor(0.5, dtype=dtype))
    assert meter.since_log() == 5000.5 / 5001


def test_no_graph_and_no_read_of_the_device():
    elsewhere = LossMeter(torch.device("meta"))  # whose tensors cannot be read
    elsewhere.add(torch.ones((), requires_grad=True, device="meta") * 2)
    with pytest.raises(RuntimeError, match="meta"):
        elsewhere.since_log()
    here = LossMeter(CPU)
    here.add(torch.ones((), requires_grad=True) * 2)
    assert copy.deepcopy(here).since_log() == 2  # which a tensor with a graph would not allow


@pytest.mark.parametrize("restored_at", range(13))
@pytest.mark.parametrize("special", [None, math.nan, math.inf])
def test_resumed_anywhere_bit_by_bit(restored_at, special):
    """Losses whose sums are not exact, logged every 3, evaluated every 5, and once cut and continued."""
    chance = random.Random(0)
    losses = [chance.uniform(0, 1) / 3 for _ in range(12)]
    if special is not None:
        losses[4] = special

    def run(cut):
        meter, told = LossMeter(CPU), []
        for number, loss in enumerate([*losses, None]):
            if number == cut:
                data = json.loads(json.dumps(meter.state_dict(), allow_nan=False))
                meter = LossMeter(CPU)
                meter.add(torch.tensor(9.0))
                meter.load_state_dict(data)
            if loss is None:
                continue
            meter.add(torch.tensor(loss))
            if number % 3 == 2:
                told.append(("log", repr(meter.since_log())))
            if number % 5 == 4:
                told.append(("evaluation", repr(meter.since_evaluation())))
        return [*told, repr(meter.since_log()), repr(meter.since_evaluation())]

    assert run(restored_at) == run(None)


def test_batches_count_by_their_samples():
    meter = LossMeter(CPU)
    meter.add(torch.tensor(1.0), 4)
    meter.add(torch.tensor(6.0), 1)
    assert meter.since_log() == 2
    meter.add(torch.tensor(9.0), 0)
    assert math.isnan(meter.since_log())

"""Settings as a checkpoint keeps them: strict JSON, equal where they mean the same, and without secrets."""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from accmt import FunctionMetric
from accmt.hyperparameters.recorded import described, recorded


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (math.inf, "inf"),
        ((0.9, math.nan), [0.9, "nan"]),
        (torch.tensor(0.5), 0.5),
        (np.float64(math.inf), "inf"),
        (Path("a") / "b", "a/b"),
        ({"run": {1: True}}, {"run": {"1": True}}),
        (object(), "builtins.object"),
        (FunctionMetric("error", abs, greater_is_better=False), "FunctionMetric('error')"),
        (torch.optim.AdamW, "torch.optim.adamw.AdamW"),
        ("https://me:word@host/x", "https://***@host/x"),
        ({"api_key": "abc", "settings": {"password": "x"}}, {"api_key": "***", "settings": {"password": "***"}}),
    ],
)
def test_what_is_kept(value, kept):
    assert recorded(value) == kept
    assert json.loads(json.dumps(recorded(value), allow_nan=False)) == kept


def test_what_is_long_is_kept_as_a_digest():
    assert recorded(list(range(100))) == recorded(tuple(range(100))) != recorded(list(range(1, 101)))
    assert recorded("x" * 999) != recorded("x" * 998 + "y")
    assert len(json.dumps([recorded(list(range(10**4))), recorded("x" * 10**4)])) < 1000


def test_functions_differ_by_their_constants():
    def decay(rate):
        return lambda step: rate**step

    class Rate:
        rate = 0.5

        def __init__(self, power):
            self.power = power

        def at(self, step):
            return self.rate**step

    def scaled(step, by=0.1):
        return step * by

    pairs = [
        (decay(0.9), decay(0.9), decay(0.5)),
        (partial(scaled, by=2), partial(scaled, by=2), partial(scaled, by=3)),
        (Rate(1).at, Rate(1).at, Rate(2).at),
        (lambda step: 1 - step / 5, lambda step: 1 - step / 5, lambda step: 1 - step / math.inf if step else 7),
    ]
    for one, same, other in pairs:
        assert described(one) == described(same) != described(other)
        json.dumps(described(one), allow_nan=False)

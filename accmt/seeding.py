"""One seed for all random number generators."""

from __future__ import annotations

import random

import numpy as np
import torch

from accmt.seed_run import seed_of_run


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices). It also determines the order of the training data.

    Args:
        seed: A number from 0 to 2**32 - 1. In a script that `accmt seeds` started, the seed of the run takes its place.

    Raises:
        ValueError, TypeError: It is not.
    """
    run = seed_of_run()
    seed = seed if run is None else run
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)

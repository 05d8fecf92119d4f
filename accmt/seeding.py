"""One seed for all random number generators."""

from __future__ import annotations

import random

import numpy as np
import torch


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices). It also determines the order of the training data.

    Args:
        seed: A number from 0 to 2**32 - 1.

    Raises:
        ValueError, TypeError: It is not.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)

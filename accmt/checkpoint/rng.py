"""The random state of a process: Python, NumPy, torch, and its accelerator."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of all commonly used random generators, as tensors."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state = {
        "python": torch.tensor([version, *words], dtype=torch.int64),
        "python.gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(keys.astype(np.int64)),  # type: ignore[union-attr]  # the legacy state is a tuple
        "numpy.position": torch.tensor([position, has_gauss], dtype=torch.int64),
        "numpy.gauss": torch.tensor([cached], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    accelerator = _generator_of(device)
    if accelerator is not None:
        state[device.type] = accelerator.get_rng_state(*_where(device))
    return state


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore the state of all generators.

    Raises:
        KeyError, ValueError, TypeError, RuntimeError: The state is not one that `random_state` returned.
    """
    version, *words = state["python"].tolist()
    gauss = state["python.gauss"].tolist()
    random.setstate((version, tuple(words), gauss[0] if gauss else None))
    position, has_gauss = state["numpy.position"].tolist()
    keys = state["numpy"].numpy().astype(np.uint32)
    if not 0 <= position <= len(keys):  # NumPy would read past the end
        raise ValueError(f"{position} is not a position among {len(keys)} random words")
    np.random.set_state(("MT19937", keys, position, has_gauss, state["numpy.gauss"].item()))
    torch.set_rng_state(state["torch"])
    accelerator = _generator_of(device)
    if accelerator is not None and device.type in state:
        accelerator.set_rng_state(state[device.type], *_where(device))


def _generator_of(device: torch.device) -> Any:
    """Return torch's module for a type of accelerator, which has its random state; None for the CPU."""
    return getattr(torch, device.type) if device.type in ("cuda", "xpu", "mps") else None


def _where(device: torch.device) -> tuple[torch.device, ...]:
    """Return the arguments that select the device; none for MPS, which has one device."""
    return () if device.type == "mps" else (device,)


def check_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Check that a state of the generators can be restored, and leave them unchanged.

    Raises:
        KeyError, ValueError, TypeError, RuntimeError: It cannot.
    """
    with untouched_random_state(device):
        set_random_state(state, device)


@contextmanager
def untouched_random_state(device: torch.device) -> Iterator[None]:
    """Restore the random state after the block, whatever is drawn in it."""
    state = random_state(device)
    try:
        yield
    finally:
        set_random_state(state, device)

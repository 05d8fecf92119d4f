"""Seeds of the random draws of the data: a function of seed, epoch and batch, wherever a batch is read.

Samplers that draw from the process-wide generators, and batches that this process loads, draw *apart*: the generators
are seeded for each batch and restored afterwards. Workers have their own generators, and seed them when the indices of
a batch arrive. So the draws are the same with any number of workers, including none, and no checkpoint has to hold
them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
import torch

# NumPy and Python produce the same numbers from the same key, so the key gets one more word for NumPy.
_NUMPY = 0x6E70
_WORD = 2**32
END = object()


def mixed(*parts: int | str) -> int:
    """Derive a seed from parts; other parts give neither this seed nor one near it."""
    digest = blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


def draw_from(seed: int) -> None:
    """Seed the generators that data commonly draw from: those of Python, NumPy, and torch on the CPU."""
    random.seed(seed)
    np.random.seed([seed % _WORD, seed // _WORD, _NUMPY])
    torch.default_generator.manual_seed(seed)


@contextmanager
def apart(seed: int) -> Iterator[None]:
    """Draw from generators seeded with `seed` in the block, and restore those of the process afterwards."""
    former = random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()
    draw_from(seed)
    try:
        yield
    finally:
        random.setstate(former[0])
        np.random.set_state(former[1])
        torch.set_rng_state(former[2])


def read_apart(batches: Iterator[Any], seed: int, step: int = 1) -> Iterator[Any]:
    """Yield the batches, each read apart: with seeds from `seed` on, in increments of `step`."""
    while True:
        with apart(seed):
            batch = next(batches, END)
        if batch is END:
            return
        seed += step
        yield batch


def restore_at_end(part: Any, state: Mapping[str, Any]) -> None:
    """Restore a sampler or a stream to the state that it had at the end of an epoch.

    Some restart on their own once they have such a state, others only after they were asked for more.
    """
    part.load_state_dict(state)
    with apart(1):
        is_at_end = next(iter(part), END) is END
    if not is_at_end:
        part.load_state_dict(state)


def fewer(skip: int, passed: int) -> RuntimeError:
    """Return the error for data that end before the position to resume from."""
    return RuntimeError(
        f"the training continues after {skip} batches of an epoch, but the data end after {passed}: "
        f"they are not the data that the checkpoint was made with"
    )

"""Identity of training data: type, length, and a digest of a few samples.

Samples are read from a copy of the dataset, so that files opened at the first sample are left for its workers to open;
random states are restored afterwards. If samples are random, or differ when read twice, only type and length are used.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import IterableDataset, Subset

from accmt.checkpoint.rng import random_state, untouched_random_state
from accmt.data.digest import Digest, digest_of
from accmt.data.generators import Generators
from accmt.data.indices import length_of
from accmt.data.seeding import draw_from
from accmt.hyperparameters.catalogue import qualified_name
from accmt.hyperparameters.recorded import recorded

_READ = 8
_LONGEST = 2.0
_WRAPPED = ("dataset", "datasets")
_SAMPLED = ("indices", "weights")


def identify_dataset(dataset: Any, device: torch.device) -> dict[str, Any]:
    """Return what a checkpoint records of a dataset, as JSON.

    Args:
        dataset: A dataset; or a stream, from which no sample is read.
        device: The device of the process; its random state is not changed.
    """
    length = length_of(dataset)
    known = {"type": qualified_name(type(dataset)), "length": length, "samples": None}
    if length and not isinstance(dataset, IterableDataset) and hasattr(dataset, "__getitem__"):
        known["samples"] = _digest_of(dataset, length, device)
    return known


def order_of(samplers: Sequence[Any]) -> list[list[Any]]:
    """Return what a checkpoint records of the samplers that decide the order: their types, and what they sample."""
    return [
        [
            qualified_name(type(sampler)),
            *(recorded(getattr(sampler, name)) for name in _SAMPLED if hasattr(sampler, name)),
            recorded(sampler) if isinstance(sampler, list | tuple | range) else None,
        ]
        for sampler in samplers
    ]


def difference(then: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> str:
    """Describe how data differ from those of a checkpoint; empty if no difference is known."""
    if then is None or now is None or then == now:
        return ""
    if then["type"] != now["type"]:
        return f"a {then['type']} then and a {now['type']} now"
    if then["length"] != now["length"]:
        return f"{then['length']} samples then and {now['length']} now"
    is_known = then["samples"] is not None and now["samples"] is not None
    return "the same number of samples, but different ones" if is_known else ""


def _digest_of(dataset: Any, length: int, device: torch.device) -> str | None:
    """Compute a digest of samples from across the dataset; None if it would not be reproducible."""
    generators = Generators({"dataset": dataset})
    states = generators.states()
    with untouched_random_state(device):
        try:
            places = sorted({round(part * (length - 1) / (_READ - 1)) for part in range(_READ)})
            first, second = (_read(dataset, places, seed, device) for seed in (1, 2))
        except Exception:  # a dataset may raise anything: the training will raise it when it reads the data
            return None
        finally:
            generators.restore(states)
    return first if first == second else None


def _read(dataset: Any, places: list[int], seed: int, device: torch.device) -> str | None:
    """Compute a digest of some samples; None if something was drawn at random, or reading took too long."""
    copied, digest = _copied(dataset), Digest()
    generators = Generators({"dataset": copied})
    draw_from(seed)
    before = digest_of([random_state(device), generators.states()])
    started = time.monotonic()
    for place in places:
        digest.add(copied[place])
        if time.monotonic() - started > _LONGEST:
            return None  # not worth the time
    if isinstance(dataset, Subset):
        digest.add(list(dataset.indices))
    return digest.hexdigest() if digest_of([random_state(device), generators.states()]) == before else None


def _copied(dataset: Any) -> Any:
    """Copy a dataset and the datasets that it wraps; the copies share their data with it."""
    copied = copy.copy(dataset)
    for name in _WRAPPED:
        inner = getattr(copied, "__dict__", {}).get(name)
        if isinstance(inner, list | tuple):
            setattr(copied, name, type(inner)(_copied(item) for item in inner))
        elif inner is not None and hasattr(inner, "__getitem__"):
            setattr(copied, name, _copied(inner))
    return copied

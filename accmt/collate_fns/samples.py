"""Splits the samples of a batch into what a collator handles: dictionaries at one place in them, or other values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from accmt.collate_fns.columns import IDS
from accmt.rules.errors import nearest

Dictionaries = Callable[[Sequence[Mapping[str, Any]]], Any]
Others = Callable[[str, Sequence[Any]], Any]


def collate(samples: Sequence[Any], dictionaries: Dictionaries, others: Others) -> Any:
    """Make a batch: `dictionaries` collates dictionaries with `input_ids`, `others` any other values, given their name.

    Tuples give a tuple (of the same type, if it has named fields), collated element by element; a list with a
    dictionary in it counts as a tuple.

    Raises:
        ValueError: There are no samples, or they differ in structure.
    """
    if len(samples) == 0:
        raise ValueError("the batch has no samples: the dataset or the batch sampler returned an empty list")
    first = samples[0]
    if not is_composed(first):
        return _collate_one("", samples, dictionaries, others)
    for index, sample in enumerate(samples):
        if not is_composed(sample) or len(sample) != len(first):
            raise _unlike("", samples, 0, index)
    made = [
        _collate_one(f"element {place} of ", values, dictionaries, others)
        for place, values in enumerate(zip(*samples, strict=True))
    ]
    return type(first)(*made) if hasattr(first, "_fields") else tuple(made)


def _collate_one(where: str, values: Sequence[Any], dictionaries: Dictionaries, others: Others) -> Any:
    tokenized = [is_tokenized(value) for value in values]
    if not any(tokenized):
        return others(f"{where}the samples", values)
    if not all(tokenized):
        raise _unlike(where, values, tokenized.index(True), tokenized.index(False))
    return dictionaries(values)


def is_composed(sample: Any) -> bool:
    """Return whether a sample consists of several objects that are collated separately."""
    if isinstance(sample, list):
        return any(isinstance(value, Mapping) for value in sample)
    return isinstance(sample, tuple)


def is_tokenized(value: Any) -> bool:
    """Return whether a value is a dictionary as returned by a tokenizer."""
    return isinstance(value, Mapping) and IDS in value


def require_tokenized(collator: str, samples: Sequence[Any]) -> None:
    """Check that the first sample has a dictionary with `input_ids`; `collate` compares the others with it.

    Raises:
        ValueError: It does not.
    """
    for first in samples[:1]:
        if not any(map(is_tokenized, first if is_composed(first) else (first,))):
            raise ValueError(
                f"{collator} needs samples that are a dictionary with '{IDS}', or a tuple with one in it, "
                f"but sample 0 of the batch is {_described(first)}"
            )


def _unlike(where: str, values: Sequence[Any], one: int, other: int) -> ValueError:
    return ValueError(
        f"the samples of the batch differ: {where}sample {one} is {_described(values[one])}, "
        f"{where}sample {other} is {_described(values[other])}"
    )


def _described(value: Any) -> str:
    if isinstance(value, Mapping):
        keys = list(map(str, value))
        meant = nearest(IDS, keys) if IDS not in keys else None
        question = f" (is '{meant}' meant to be '{IDS}'?)" if meant is not None else ""
        return f"a dictionary with {', '.join(map(repr, keys)) or 'no keys'}{question}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"an object of type {type(value).__name__}"

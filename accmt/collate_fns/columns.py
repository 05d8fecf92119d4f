"""Turns the dictionaries of samples into one dictionary of a batch: the values of each key become one tensor.

A column is the list of one key's values, one per sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from accmt.collate_fns.tokenizer import Padding
from accmt.config.errors import must_be
from accmt.rules.errors import listed

IDS = "input_ids"
ALIKE = "make them alike"
_PER_TOKEN = (IDS, "attention_mask", "token_type_ids", "special_tokens_mask")


def read_columns(dictionaries: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return key -> column, with arrays and lists of numbers as tensors, and without the batch dimension of a sample.

    Raises:
        ValueError: The samples have different keys, or no usable `input_ids`.
    """
    first = dictionaries[0]
    for index, dictionary in enumerate(dictionaries):
        for key in (*first, *dictionary):
            if key not in dictionary or key not in first:
                having, lacking = (0, index) if key in first else (index, 0)
                text = f"sample {having} of the batch has '{key}' and sample {lacking} does not"
                raise ValueError(f"{text}: give all samples the same keys")
    rows = [_row(f"sample {index} of the batch", dictionary) for index, dictionary in enumerate(dictionaries)]
    return {key: [row[key] for row in rows] for key in first}


def _row(sample: str, dictionary: Mapping[str, Any]) -> dict[str, Any]:
    row = {key: as_tensor(value) for key, value in dictionary.items()}
    per_token = [key for key in _PER_TOKEN if key in row]
    for key in per_token:
        if not isinstance(row[key], Tensor) or row[key].dim() == 0:
            raise ValueError(f"{sample}: {key} {must_be('a sequence of numbers', dictionary[key])}")
    if row[IDS].dim() == 2 and len(row[IDS]) == 1:
        row = {key: _without_batch(value) for key, value in row.items()}
    ids = row[IDS]
    if ids.dim() != 1:
        shape = tuple(ids.shape)
        raise ValueError(f"{sample}: {IDS} has the shape {shape}, a sample is one sequence, (tokens,) or (1, tokens)")
    if len(ids) > 0 and (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool):
        raise ValueError(f"{sample}: {IDS} must be whole numbers, not {ids.dtype}")
    for key in per_token:
        if len(row[key]) != len(ids):
            raise ValueError(f"{sample}: {key} has {len(row[key])} entries for {len(ids)} of {IDS}")
    return row


def as_tensor(value: Any) -> Any:
    """Convert an array or a list of numbers to a tensor; return everything else unchanged."""
    if isinstance(value, np.ndarray) and value.ndim > 0 and value.dtype.kind in "biufc":
        return torch.tensor(np.ascontiguousarray(value))
    if isinstance(value, list | tuple):
        try:
            if value and isinstance(value[0], Tensor | np.ndarray):
                return torch.stack([torch.as_tensor(entry) for entry in value])
            return torch.tensor(value)
        except (TypeError, ValueError, RuntimeError):  # not numbers, or lists of different lengths
            return value
    return value


def _without_batch(value: Any) -> Any:
    return value[0] if isinstance(value, Tensor) and value.dim() > 1 and len(value) == 1 else value


def batch_columns(
    columns: Mapping[str, list[Any]],
    padding: Padding,
    others: Callable[[str, list[Any]], Any],
    follows: Callable[[str], bool] = lambda key: True,
) -> dict[str, Any]:
    """Make the batch of each column: pad those that follow the tokens, and pass the others, with a name, to `others`.

    A column follows the tokens if it has, in each sample, as many entries as `input_ids`, another `..input_ids` or
    `labels`, and its key passes `follows`.
    """
    lengths = {key: _lengths(column) for key, column in columns.items() if follows(key)}
    leading = [found for key, found in lengths.items() if (key.endswith(IDS) or key == "labels") and found is not None]
    return {
        key: pad_sequences(column, padding.value(key), padding.side)
        if lengths.get(key) in leading
        else others(f"'{key}'", column)
        for key, column in columns.items()
    }


def _lengths(column: Sequence[Any]) -> list[int] | None:
    """Return the length of each value, None if a value is not a sequence or the shapes of entries differ."""
    if not all(isinstance(value, Tensor) and value.dim() > 0 for value in column):
        return None
    kinds = {value.shape[1:] for value in column if len(value) > 0}
    return [len(value) for value in column] if len(kinds) <= 1 else None


def pad_sequences(sequences: Sequence[Tensor], value: int, side: str) -> Tensor:
    """Pad sequences, each (tokens, ...), to (samples, longest, ...); integers become int64, other types stay."""
    filled = [sequence for sequence in sequences if len(sequence) > 0] or [torch.zeros(0, dtype=torch.int64)]
    dtype = reduce(torch.promote_types, [_wide(sequence.dtype, value) for sequence in filled])
    longest = max(len(sequence) for sequence in sequences)
    shape = (len(sequences), longest, *filled[0].shape[1:])
    padded = torch.full(shape, value, dtype=dtype, device=sequences[0].device)
    for row, sequence in zip(padded, sequences, strict=True):
        if len(sequence) > 0:
            start = longest - len(sequence) if side == "left" else 0
            row[start : start + len(sequence)] = sequence
    return padded


def _wide(dtype: torch.dtype, value: int) -> torch.dtype:
    if dtype.is_floating_point or dtype.is_complex or (dtype == torch.bool and value in (0, 1)):
        return dtype
    return torch.int64


def stack(name: str, values: Sequence[Any], advice: str = ALIKE) -> Any:
    """Stack values that are not padded, by torch's default collation.

    Raises:
        ValueError: The values do not fit together.
    """
    try:
        return default_collate(list(values))
    except (TypeError, RuntimeError, ValueError, KeyError) as error:
        tensors = all(isinstance(value, Tensor) for value in values)
        found = [str(tuple(value.shape)) if tensors else type(value).__name__ for value in values]
        what = f"{'shapes' if tensors else 'types'} {listed(list(dict.fromkeys(found)))}"
        raise ValueError(f"{name} of the batch cannot be combined, found {what}: {advice}") from error

"""Conversion of values to JSON and YAML types, for trackers, files, and comparing hyperparameters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from accmt.hyperparameters.catalogue import qualified_name


def plain_value(value: object) -> Any:
    """Convert a value to dictionaries, lists, numbers, strings, bools and None only.

    A tensor or numpy value becomes numbers, a function or class its qualified name, a path a string, anything else its
    repr.
    """
    value = comparable(value)
    if isinstance(value, dict):
        return {key: plain_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain_value(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    return qualified_name(value) if callable(value) else repr(value)


def comparable(value: object) -> Any:
    """Convert tuples to lists and tensors to numbers, so that `==` gives a single bool; functions are kept."""
    if isinstance(value, Mapping):
        return {str(key): comparable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [comparable(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((comparable(item) for item in value), key=repr)
    if isinstance(value, torch.Tensor) or type(value).__module__ == "numpy":
        return value.tolist() if hasattr(value, "tolist") else value
    return os.fspath(value) if isinstance(value, os.PathLike) else value

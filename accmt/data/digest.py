"""Digests of data, which differ where the data do."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import torch


class Digest:
    """Digest of the values added so far, with their types and shapes."""

    def __init__(self) -> None:
        self._hash = blake2b(digest_size=16)

    def hexdigest(self) -> str:
        """Return the digest as text."""
        return self._hash.hexdigest()

    def add(self, value: Any) -> None:
        """Add a value.

        Raises:
            ValueError: It is neither plain data nor composed of plain data.
        """
        if isinstance(value, torch.Tensor):
            self._add_tensor(value)
        elif isinstance(value, np.ndarray | np.generic):
            self._add_array(np.asarray(value))
        elif value is None or isinstance(value, bool | int | float | complex | str | bytes):
            self._hash.update(f"{type(value).__name__} {value!r};".encode(errors="surrogatepass"))
        elif isinstance(value, Mapping):
            self.add([item for pair in value.items() for item in pair])
        elif isinstance(value, list | tuple):
            self._hash.update(f"{len(value)} items;".encode())
            for item in value:
                self.add(item)
        elif is_dataclass(value):
            self.add([getattr(value, field.name) for field in fields(value)])
        elif hasattr(value, "__array__") or hasattr(value, "__array_interface__"):  # images
            self._add_array(np.asarray(value))
        elif isinstance(value, io.IOBase) or not getattr(value, "__dict__", None):
            raise ValueError(f"a {type(value).__name__} is not plain data")
        else:
            self.add(vars(value))

    def _add_tensor(self, tensor: torch.Tensor) -> None:
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise ValueError("a sparse or quantized tensor has no digest")
        self._hash.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
        self._hash.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())

    def _add_array(self, array: np.ndarray[Any, Any]) -> None:
        if array.dtype.hasobject:
            raise ValueError("an array of objects is not plain data")
        self._hash.update(f"{array.dtype} {array.shape};".encode() + np.ascontiguousarray(array).tobytes())


def digest_of(value: Any) -> str:
    """Return the digest of a value.

    Raises:
        ValueError: It is not plain data.
    """
    digest = Digest()
    digest.add(value)
    return digest.hexdigest()

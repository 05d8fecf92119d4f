"""Strict JSON. Does not import torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from accmt.files.foreign import MIB, read_bytes

_LARGEST = 256 * MIB


def as_json(data: Any) -> str:
    """Serialize to strict JSON.

    Raises:
        ValueError: A number is NaN or infinite.
        TypeError: JSON has no such type.
    """
    return json.dumps(data, allow_nan=False)


def write_json(path: Path, data: Any) -> None:
    """Write strict JSON, as serialized by `as_json`."""
    path.write_text(as_json(data), encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read strict JSON from a regular file; links are not followed.

    Raises:
        OSError: The file does not exist, or is not a regular file.
        ValueError: It is not strict JSON, or too large.
    """
    return json.loads(read_bytes(path, _LARGEST).decode("utf-8"), parse_constant=_refuse)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")

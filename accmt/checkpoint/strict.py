"""Strict JSON. It imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from accmt.config.foreign import MIB, read_bytes

_LARGEST = 256 * MIB


def as_json(data: Any) -> str:
    """Strict JSON.

    Raises:
        ValueError: A number is NaN or infinite.
        TypeError: Something that JSON does not have.
    """
    return json.dumps(data, allow_nan=False)


def write_json(path: Path, data: Any) -> None:
    """Write strict JSON, as `as_json` makes it."""
    path.write_text(as_json(data), encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read strict JSON from a regular file; no link is followed.

    Raises:
        OSError: There is no such file.
        ValueError: It is something else, or too large.
    """
    return json.loads(read_bytes(path, _LARGEST).decode("utf-8"), parse_constant=_refuse)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")

"""Strict JSON. It imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn


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
    """Read strict JSON.

    Raises:
        ValueError: It is not.
    """
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")

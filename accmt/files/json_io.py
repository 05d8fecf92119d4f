"""Strict JSON, read by the types of dataclasses (`rules.codec`), and errors that name file and place.

Does not import torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from accmt.files.foreign import MIB, NotAFile, read_bytes
from accmt.rules.codec import from_plain
from accmt.rules.printable import escaped

_LARGEST = 256 * MIB


class DamagedFile(ValueError):
    """A file does not have the content that accmt writes.

    Attributes:
        reason: The place in the file, what is there, and what is allowed; the message names the file as well.
    """

    def __init__(self, path: Path, reason: object) -> None:
        super().__init__(f"{path} cannot be read: {reason}")
        self.reason = reason


def as_json(data: Any, indent: int | None = None) -> str:
    """Serialize to strict JSON.

    Raises:
        ValueError: A number is NaN or infinite.
        TypeError: JSON has no such type.
    """
    return json.dumps(data, allow_nan=False, indent=indent)


def write_json(path: Path, data: Any, indent: int | None = None) -> None:
    """Write strict JSON, as serialized by `as_json`."""
    path.write_text(as_json(data, indent), encoding="utf-8", newline="\n")


def read_json(path: Path, kind: Any = Any) -> Any:
    """Read strict JSON from a regular file; links are not followed.

    Args:
        path: The file.
        kind: The type of its content, as for `from_plain`.

    Raises:
        OSError: The file does not exist, or cannot be read.
        DamagedFile: It is not a regular file or not strict JSON, too large, or of another type.
    """
    with reading(path):
        return from_plain(kind, json.loads(read_bytes(path, _LARGEST).decode("utf-8"), parse_constant=_refuse))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn errors of the content of a file in the block into `DamagedFile`."""
    try:
        yield
    except NotAFile as error:
        raise DamagedFile(path, error.strerror) from None
    except RecursionError:
        raise DamagedFile(path, "it is nested too deeply") from None
    except ValueError as error:
        raise DamagedFile(path, escaped(error)) from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")

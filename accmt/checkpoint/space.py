"""Whether there is room on a disk."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path


def require_space(folder: Path, size: int) -> None:
    """Find out before anything is written that a disk is too full. Quotas are not seen.

    Args:
        folder: A folder on the disk.
        size: Bytes that are to be written.

    Raises:
        OSError: There are fewer.
    """
    try:
        total, _, free = shutil.disk_usage(folder)
    except OSError:
        return  # what is wrong with the folder is told by writing into it
    if total and free < size:  # some file systems do not know how large they are
        raise OSError(errno.ENOSPC, f"{_readable(size)} are needed and {_readable(free)} are free", str(folder))


def _readable(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"

"""A check for free disk space."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path


def require_space(folder: Path, size: int) -> None:
    """Check before writing that a disk has enough free space. Quotas are not considered.

    Args:
        folder: A folder on the disk.
        size: Bytes to be written.

    Raises:
        OSError: Fewer bytes are free.
    """
    try:
        total, _, free = shutil.disk_usage(folder)
    except OSError:
        return  # writing into the folder reports what is wrong with it
    if total and free < size:  # some file systems report a size of 0
        raise OSError(errno.ENOSPC, f"{_readable(size)} are needed and {_readable(free)} are free", str(folder))


def _readable(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"

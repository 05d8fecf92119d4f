"""A check for free disk space."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from rich.filesize import decimal


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
        raise OSError(errno.ENOSPC, f"{decimal(size)} are needed and {decimal(free)} are free", str(folder))

"""Safe access to files that someone else may have written, and to names in them: neither can escape their folder.

All code that reads from a `model_path` uses these functions. They import nothing heavy.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from accmt.rules.printable import escaped

MIB = 1 << 20
BINARY = getattr(os, "O_BINARY", 0)
"""Flag of `os.open` without which Windows translates the ends of lines."""
# Flags that Windows lacks count as 0.
_CAREFULLY = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC")) | BINARY


class NotAFile(OSError):
    """A path that must be a file is a link, a pipe or something else; the message says what."""


def below(folder: Path, name: str) -> Path:
    """Return the path in `folder` of a name that was read from a file.

    Raises:
        ValueError: It is not a relative name that stays in the folder, or a part of it is a link.
    """
    parts, is_windows = PurePosixPath(name).parts, sys.platform == "win32"
    if (
        not parts
        or "\0" in name
        or ".." in parts
        or os.path.isabs(name)
        or "\\" in name
        or (is_windows and ":" in name)
    ):
        raise ValueError(f"'{escaped(name)}' is not a relative name without '..': nothing is read or written there")
    path = folder.joinpath(*parts)
    if (link := link_to(folder, path)) is not None:
        raise ValueError(f"'{escaped(link)}' is a link: nothing is read or written behind it")
    return path


def link_to(folder: Path, path: Path) -> Path | None:
    """Return the first part of a path below a folder that is a link, if any; the folder itself may be one."""
    parts = path.relative_to(folder).parts
    places = (folder.joinpath(*parts[: count + 1]) for count in range(len(parts)))
    return next((place for place in places if place.is_symlink()), None)


def problem_of_content(folder: Path, path: Path) -> str | None:
    """Return why the content of a file or folder may not be what it seems, None if nothing is wrong with it.

    Args:
        folder: The folder that it must be in, without passing a link.
        path: The file or folder, absolute.
    """
    bases = (Path(os.path.abspath(folder)), folder.resolve())
    own = next((base for base in bases if path != base and path.is_relative_to(base)), None)
    if own is None or ".." in path.parts:
        return f"is outside of {folder}"
    if (link := link_to(own, path)) is not None:
        return f"is reached through a link, {link}" if link != path else "is a link"
    return next((problem for entry in _entries(path) if (problem := _problem_of_entry(entry, path))), None)


def is_file(path: Path) -> bool:
    """Return whether a path is a regular file, and not a link to one."""
    return path.is_file() and not path.is_symlink()


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder, and not a link to one."""
    return path.is_dir() and not path.is_symlink()


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a regular file without following links or blocking on a pipe or device.

    Raises:
        FileNotFoundError: It does not exist.
        NotAFile: It is not a regular file; or it is opened for writing, and has hard links, which would change too.
        OSError: It cannot be opened.
    """
    try:
        if sys.platform == "win32" and path.is_symlink():
            raise OSError(errno.ELOOP, "it is a link", str(path))
        descriptor = os.open(path, flags | _CAREFULLY, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotAFile(errno.ELOOP, "it is a link, and must be a file", str(path)) from None
        if error.errno == errno.ENXIO:
            raise NotAFile(errno.EINVAL, "it is not a regular file", str(path)) from None
        raise
    status = os.fstat(descriptor)
    problem = None
    if not stat.S_ISREG(status.st_mode):
        problem = "it is not a regular file"
    elif flags & (os.O_RDWR | os.O_WRONLY) and status.st_nlink > 1:
        problem = "it has other names (hard links)"
    if problem is not None:
        os.close(descriptor)
        raise NotAFile(errno.EINVAL, problem, str(path))
    return descriptor


def read_bytes(path: Path, most: int) -> bytes:
    """Return the content of a regular file.

    Raises:
        FileNotFoundError: It does not exist.
        NotAFile: It is not a regular file.
        OSError: It cannot be read.
        ValueError: It is larger than `most` bytes.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ValueError(f"{path.name} has {size:,} bytes, and at most {most:,} are read")
        return file.read(size)  # not `most`: read() allocates all requested bytes at once


def _entries(path: Path) -> Iterator[Path]:
    """Yield the path itself and, for a folder, all its descendants."""
    yield path
    if is_folder(path):
        for entry in path.iterdir():
            yield from _entries(entry)


def _problem_of_entry(path: Path, top: Path) -> str | None:
    status = path.lstat()
    what = "" if path == top else f"holds {escaped(path.relative_to(top))}, which "
    if stat.S_ISDIR(status.st_mode):
        return None
    if not stat.S_ISREG(status.st_mode):
        return f"{what}is not a regular file"
    return f"{what}has other names (hard links)" if status.st_nlink > 1 else None

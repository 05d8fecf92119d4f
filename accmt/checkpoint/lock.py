"""One training at a time in one `model_path`."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from accmt.config.foreign import NotAFile, open_regular

LOCK = ".lock"

# With the process, because a forked child has a copy of this, but not the locks.
_held: set[tuple[int, Path]] = set()


def is_held_here(folder: Path) -> bool:
    """Whether this process holds the lock of a folder."""
    return (os.getpid(), folder.resolve()) in _held


class Lock:
    """A POSIX record lock on a folder. It ends with its process, however that ends, and no child inherits it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._file = -1

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            RuntimeError: Another training, in this process or another, works in this folder.
            OSError: The file of the lock cannot be written.
        """
        import fcntl

        self._folder.mkdir(parents=True, exist_ok=True)
        if is_held_here(self._folder):
            raise RuntimeError(f"another training of this process works in {self._folder}: give it another model_path")
        self._file = self._opened()
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = os.pread(self._file, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._file)
            raise RuntimeError(
                f"another training works in {self._folder} (process {holder}): wait for it, or give another model_path"
            ) from None
        except OSError as error:
            warnings.warn(
                f"{self._folder} cannot be locked ({error.strerror}): see to it that no other training works in it",
                stacklevel=2,
            )
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)
        _held.add((os.getpid(), self._folder))

    def _opened(self) -> int:
        """The file of the lock; no link is followed, for what is behind it would be overwritten."""
        path = self._folder / LOCK
        try:
            return open_regular(path, os.O_RDWR | os.O_CREAT)
        except NotAFile as error:
            raise OSError(error.errno, str(error.strerror).replace("it ", f"its {LOCK} ", 1), str(path)) from None

    def release(self) -> None:
        """Give the lock back. Releasing a lock that is not held does nothing."""
        if self._file >= 0:
            _held.discard((os.getpid(), self._folder))
            os.close(self._file)
            self._file = -1

"""Locks of open files: they end with the process, and no file has to be deleted.

On Windows, where a locked part of a file cannot be read, a byte far behind the content is locked.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Callable
from functools import partial

# Errors that mean another process has the lock. All others, including EPERM, mean that locking does not work at all.
LOCKED = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES})


def _succeeds(lock: Callable[[], object]) -> bool:
    """Call a function that locks; False if another one holds the lock."""
    try:
        lock()
    except OSError as error:
        if error.errno not in LOCKED:
            raise
        return False
    return True


if sys.platform == "win32":
    import msvcrt

    _PLACE = 1 << 30

    def lock_open_file(file: int, *, unlock: bool = False) -> bool:
        """Lock an open file, or unlock it; False if another one holds the lock.

        Raises:
            OSError: Files cannot be locked here.
        """
        os.lseek(file, _PLACE, os.SEEK_SET)
        return _succeeds(partial(msvcrt.locking, file, msvcrt.LK_UNLCK if unlock else msvcrt.LK_NBLCK, 1))

    lock_file_of_process = lock_open_file

    def is_locked(file: int) -> bool:
        """Return whether a file is locked. If not, it is locked for a moment."""
        if lock_open_file(file):
            lock_open_file(file, unlock=True)
            return False
        return True

else:
    import fcntl

    # struct flock: the kernel reads the request from its first fields, and writes the answer there.
    _LINUX = struct.Struct("hhqqi4x")  # type, whence, start, length, process
    _BSD = struct.Struct("qqihhi")  # start, length, process, type, whence, system

    def lock_open_file(file: int, *, unlock: bool = False) -> bool:
        """Lock an open file, or unlock it; False if another one holds the lock.

        The lock belongs to the open file, where the system has this kind of lock: one of the process is lost as soon as
        any code in it opens and closes the file, such as a copy of the folder.

        Raises:
            OSError: Files cannot be locked here.
        """
        if hasattr(fcntl, "F_OFD_SETLK"):
            asked = _LINUX.pack(fcntl.F_UNLCK if unlock else fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            try:
                return _succeeds(partial(fcntl.fcntl, file, fcntl.F_OFD_SETLK, asked))
            except OSError as error:
                if error.errno != errno.EINVAL:  # the system does not support this kind of lock
                    raise
        return _succeeds(partial(fcntl.flock, file, fcntl.LOCK_UN if unlock else fcntl.LOCK_EX | fcntl.LOCK_NB))

    def lock_file_of_process(file: int) -> bool:
        """Lock a file for this process, which may lock it again; False if another process has.

        Raises:
            OSError: Files cannot be locked here.
        """
        return _succeeds(partial(fcntl.lockf, file, fcntl.LOCK_EX | fcntl.LOCK_NB))

    def is_locked(file: int) -> bool:
        """Return whether any process locks a file, without locking it even for a moment."""
        if sys.platform == "linux":
            asked = _LINUX.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind = _LINUX.unpack(fcntl.fcntl(file, fcntl.F_GETLK, asked)[: _LINUX.size])[0]
        else:
            asked = _BSD.pack(0, 0, 0, fcntl.F_WRLCK, os.SEEK_SET, 0)
            kind = _BSD.unpack(fcntl.fcntl(file, fcntl.F_GETLK, asked)[: _BSD.size])[3]
        return bool(kind != fcntl.F_UNLCK)

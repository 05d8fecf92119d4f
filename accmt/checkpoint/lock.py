"""One training at a time in one `model_path`.

Two guards, and either rejects a second training. The file `.lock` is locked, for all machines that share the folder. On
Linux, an abstract socket (without a file) is also named after the folder: it works where a file system has no locks,
and survives the deletion of `.lock` or the whole folder. Both end with the process; a forked child, such as a data
loading worker, would inherit them, so it closes them at once.

No library does this: `filelock` and `portalocker` take one kind of lock on a file, know neither the socket nor who
holds the lock, and find out whether it is held only by taking it, which would refuse a training that starts just then.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from accmt.files.file_locks import is_locked, lock_open_file
from accmt.files.foreign import NotAFile, open_regular
from accmt.rules import reserved_names as names

LOCK = names.LOCK

_LONGEST_TEXT = 400
_HOST = re.compile(r"[\w.:-]{1,255}", re.ASCII)
_TIME = re.compile(r"[0-9-]{10} [0-9:]{8} UTC")


@dataclass(frozen=True, slots=True)
class Holder:
    """Holder of a lock, as far as it is known."""

    process: int | None = None
    host: str = ""
    since: str = ""

    def __str__(self) -> str:
        where = f" on {self.host}" if self.host else ""
        since = f", since {self.since}" if self.since else ""
        return f"process {self.process or 'unknown'}{where}{since}"

    @property
    def is_here(self) -> bool:
        """True if this process holds the lock."""
        return (self.process, self.host) == (os.getpid(), _host())


class Lock:
    """Lock of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._file = -1
        self._socket: socket.socket | None = None

    def acquire(self) -> str | None:
        """Acquire the lock.

        Returns:
            A warning if the file system does not support locks; None if it is locked.

        Raises:
            RuntimeError: Another training, in this or another process, uses this folder.
            OSError: The lock file cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._file >= 0:
            raise self._refusal()
        _open.add(self)
        try:
            return self._take()
        except BaseException:
            self._close()
            raise

    def release(self) -> None:
        """Release the lock. Does nothing if it is not held."""
        if self._file >= 0:
            with suppress(OSError):
                # A child that copied the file without our fork hook holds the lock, too.
                lock_open_file(self._file, unlock=True)
        self._close()

    def _take(self) -> str | None:
        """Acquire both guards, with the result of `acquire`."""
        warning = None
        if not self._named():
            raise self._refusal()
        self._file = self._opened()
        try:
            if not lock_open_file(self._file):
                raise self._refusal()
        except OSError as error:
            other = "training on another machine" if self._socket is not None else "other training"
            why = error.strerror
            warning = f"{self._folder} cannot be locked ({why}): make sure that no {other} uses it"
        started = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)
        os.write(self._file, f"{os.getpid()}\n{_host()}\n{started}\n".encode())
        return warning

    def _named(self) -> bool:
        """Bind a socket named after the folder; False if another process has. Without sockets, the file must do."""
        address = _address(self._folder)
        if address is None:
            return True
        with suppress(OSError):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                self._socket.bind(address)
            except OSError as error:
                self._socket.close()
                self._socket = None
                return error.errno != errno.EADDRINUSE
        return True

    def _opened(self) -> int:
        """Open the lock file; links are not followed, as their target would be overwritten."""
        path = self._folder / LOCK
        try:
            return open_regular(path, os.O_RDWR | os.O_CREAT)
        except NotAFile as error:
            raise OSError(error.errno, str(error.strerror).replace("it ", f"its {LOCK} ", 1), str(path)) from None

    def _refusal(self) -> RuntimeError:
        holder = Holder()
        with suppress(OSError), _opened_to_read(self._folder) as file:
            holder = _holder_in(file)
        if holder.is_here:
            return RuntimeError(f"another training of this process uses {self._folder}: give it another model_path")
        return RuntimeError(f"another training uses {self._folder} ({holder}): wait for it, or give another model_path")

    def _close(self) -> None:
        _open.discard(self)
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def holder_of(folder: Path) -> Holder | None:
    """Return the holder of the lock of a folder, without acquiring it; None if it is not held.

    Raises:
        OSError: The holder cannot be determined.
    """
    folder = folder.resolve()
    try:
        with _opened_to_read(folder) as file:
            return _holder_in(file) if _is_named(folder) or is_locked(file) else None
    except FileNotFoundError:
        return Holder() if _is_named(folder) else None


@contextmanager
def _opened_to_read(folder: Path) -> Iterator[int]:
    file = open_regular(folder / LOCK)
    try:
        yield file
    finally:
        os.close(file)


def _holder_in(file: int) -> Holder:
    """Read the holder from a lock file; malformed fields stay unknown."""
    os.lseek(file, 0, os.SEEK_SET)
    lines = [*os.read(file, _LONGEST_TEXT).decode(errors="replace").split("\n"), "", "", ""]
    process = int(lines[0]) if re.fullmatch("[0-9]{1,10}", lines[0]) else None
    return Holder(process, lines[1] * bool(_HOST.fullmatch(lines[1])), lines[2] * bool(_TIME.fullmatch(lines[2])))


def _address(folder: Path) -> bytes | None:
    """Return the socket address of a folder; None where sockets need a file.

    It is made of the parent and the folder's name, which outlast the folder, and differ between containers.
    """
    if sys.platform != "linux":
        return None
    above = folder.parent.stat()
    place = f"{above.st_dev}:{above.st_ino}:".encode() + os.fsencode(folder.name)
    return b"\0accmt-" + hashlib.sha256(place).hexdigest()[:32].encode()


def _is_named(folder: Path) -> bool:
    """Return whether a process has bound the socket of a folder."""
    address = _address(folder)
    if address is None:
        return False
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asking:
        asking.connect(address)
        return True
    return False


def _host() -> str:
    return socket.gethostname()


# All held locks; keeps those alive that nothing else references.
_open: set[Lock] = set()


def _close_in_child() -> None:
    for lock in list(_open):
        lock._close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)

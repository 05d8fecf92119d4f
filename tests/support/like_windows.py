"""Runs a script as if Python's own modules were those of Windows: `python like_windows.py SCRIPT ARGUMENT...`.

What Windows lacks is taken away, and what it refuses is refused: opening a folder, replacing what exists by a rename,
deleting or renaming open files, flushing files that are open for reading, and some names. Libraries are imported
before, as they choose their own code for a system. Paths stay as they are here.
"""

import contextlib
import fcntl
import multiprocessing.context
import os
import runpy
import shutil
import signal
import socket
import sys
import types

import accelerate  # noqa: F401
import lark  # noqa: F401
import rich.console  # noqa: F401
import sklearn.datasets  # noqa: F401
import torch.distributed
import torch.utils.data  # noqa: F401

LACKS = {
    signal: "SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP SIGUSR1 SIGUSR2 alarm pthread_kill "
    "pthread_sigmask setitimer sigpending sigwait siginterrupt",
    os: "O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_SYNC chown fchmod fork forkpty getegid geteuid getgid "
    "getloadavg getpgid getpgrp getsid getuid killpg mkfifo posix_fallocate posix_spawn pread pwrite register_at_fork "
    "sched_getaffinity setpgid setsid sync sysconf uname wait",
    socket: "AF_UNIX",
    multiprocessing.context: "ForkContext ForkProcess ForkServerContext ForkServerProcess",
}
LOCKING = {0: fcntl.LOCK_UN, 2: fcntl.LOCK_EX | fcntl.LOCK_NB}


def refusing(function, problem):
    """The function, with an error if `problem` of its arguments is true."""

    def call(*arguments, **given):
        if problem(*arguments):
            raise PermissionError(13, "Windows refuses this", str(arguments[0]))
        return function(*arguments, **given)

    return call


def locking(file, mode, size):
    """Lock as msvcrt does; flock belongs to an open file, too."""
    fcntl.flock(file, LOCKING[mode])


def is_open(path, *_):
    """Whether this process has a file open, or one below a folder."""
    place = os.path.abspath(os.fspath(path))
    found = []
    for file in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{file}"))
    return any(file == place or file.startswith(f"{place}/") for file in found)


def flush(file, flushed=os.fsync):
    """Flush a file that may be written; of others, Windows says that they are none."""
    number = file if isinstance(file, int) else file.fileno()
    if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(9, "Bad file descriptor")
    flushed(number)


def is_bad_name(path, *_):
    name = os.path.basename(os.fspath(path))
    return bool(set('<>:"|?*\\') & set(name)) or name.endswith((" ", "."))


for module, names in LACKS.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
sys.modules["msvcrt"] = types.SimpleNamespace(LK_UNLCK=0, LK_NBLCK=2, locking=locking)
os.open = refusing(os.open, lambda path, *_: os.path.isdir(path))
os.mkdir = refusing(os.mkdir, is_bad_name)
os.rename = refusing(os.rename, lambda source, target: os.path.lexists(target) or is_open(source))
os.replace = refusing(os.replace, lambda source, target: os.path.isdir(target) or is_open(source) or is_open(target))
os.unlink = os.remove = refusing(os.unlink, is_open)
os.fsync = flush
shutil._use_fd_functions = False
sys.platform = "win32"
del sys.argv[0]
sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")

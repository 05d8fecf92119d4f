"""One training at a time in a folder, and a dead one is in nobody's way."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from accmt.checkpoint.lock import Lock

ROOT = Path(__file__).resolve().parents[2]

HOLDER = """
import os, sys, time
from pathlib import Path
from accmt.checkpoint.lock import Lock
lock = Lock(Path(sys.argv[1]))
lock.acquire()
if sys.argv[2] == "forks" and os.fork() == 0:
    time.sleep(60)
print(os.getpid(), flush=True)
sys.stdin.read()
lock.release()
print("released", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def held(tmp_path):
    """A process that holds the lock of a folder."""
    processes = []

    def start(way="alone"):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path), way],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        assert int(process.stdout.readline()) == process.pid
        return process

    yield start
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdin.close()
        process.stdout.close()


def refused(folder):
    with pytest.raises(RuntimeError) as caught:
        Lock(folder).acquire()
    return str(caught.value)


def test_second_process_is_refused_and_told_who_holds_it(tmp_path, held):
    process = held()
    assert refused(tmp_path) == (
        f"another training works in {tmp_path} (process {process.pid}): wait for it, or give another model_path"
    )


def test_refused_again_and_again(tmp_path, held):
    """Looking at a lock must not open it: closing a file ends the POSIX locks of the process that closes it."""
    held()
    assert refused(tmp_path) == refused(tmp_path)


def test_free_after_the_holder_was_killed(tmp_path, held):
    process = held()
    process.send_signal(signal.SIGKILL)
    process.wait()
    lock = Lock(tmp_path)
    lock.acquire()
    assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"
    lock.release()


def test_a_child_that_outlives_the_holder_does_not_keep_it(tmp_path, held):
    """As the workers of a data loader do for some seconds."""
    process = held("forks")
    assert f"process {process.pid}" in refused(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    lock = Lock(tmp_path)
    lock.acquire()
    lock.release()


def test_free_after_release(tmp_path, held):
    process = held()
    process.stdin.close()
    assert process.stdout.readline() == "released\n"
    lock = Lock(tmp_path)
    lock.acquire()
    lock.release()


def test_twice_in_one_process_is_refused(tmp_path):
    lock = Lock(tmp_path)
    lock.acquire()
    link = tmp_path.parent / "link"
    link.symlink_to(tmp_path)
    for path in (tmp_path, tmp_path / "sub" / "..", link):
        assert refused(path) == f"another training of this process works in {tmp_path}: give it another model_path"
    lock.release()
    lock.release()
    lock.acquire()
    lock.release()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_child_is_refused_while_its_parent_works_and_not_afterwards(tmp_path):
    lock = Lock(tmp_path)
    lock.acquire()
    assert in_child(lambda: refused(tmp_path)) == (
        f"another training works in {tmp_path} (process {os.getpid()}): wait for it, or give another model_path"
    )
    assert in_child(lambda: str(lock.release())) == "None"
    assert "another training" in in_child(lambda: refused(tmp_path)), "a child gave the lock of its parent away"
    lock.release()
    assert in_child(lambda: str(Lock(tmp_path).acquire())) == "None"


def in_child(action):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, action().encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with open(reader, encoding="utf-8") as file:
        return file.read()


def test_folders_are_locked_each_for_itself(tmp_path):
    locks = [Lock(tmp_path / name) for name in ("a", "b")]
    for lock in locks:
        lock.acquire()
    for lock in locks:
        lock.release()


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch):
    def fails(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", fails)
    lock = Lock(tmp_path)
    assert lock.acquire() == (
        f"{tmp_path} cannot be locked (No locks available): see to it that no other training works in it"
    )
    lock.release()


def test_what_a_link_leads_to_is_not_overwritten(tmp_path):
    (tmp_path / "mine").write_text("mine")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match=r"its \.lock is a link, and must be a file") as caught:
        Lock(folder).acquire()
    assert caught.value.errno == errno.ELOOP
    assert (tmp_path / "mine").read_text() == "mine"

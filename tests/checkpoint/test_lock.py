"""One training at a time in a folder, and a dead one is in nobody's way."""

import errno
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from accmt.checkpoint import lock as lock_module
from accmt.checkpoint.lock import Lock, holder_of

ROOT = Path(__file__).resolve().parents[2]

HOLDER = """
import os, sys, time
from pathlib import Path
from accmt.checkpoint.lock import Lock
lock = Lock(Path(sys.argv[1]))
lock.acquire()
if sys.argv[2] == "forks":
    reads, writes = os.pipe()
    if os.fork() == 0:
        os.write(writes, b"x")
        time.sleep(60)
    os.read(reads, 1)  # before the child runs, it has not closed anything yet
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


def said_by(folder, process):
    """How a refusal names the holder: with its machine, and since when."""
    since = (folder / ".lock").read_text().split("\n")[2]
    began = datetime.strptime(since, "%Y-%m-%d %H:%M:%S UTC").replace(tzinfo=UTC)
    assert timedelta(0) <= datetime.now(UTC) - began < timedelta(minutes=5)
    return f"process {process} on {socket.gethostname()}, since {since}"


def refused(folder):
    with pytest.raises(RuntimeError) as caught:
        Lock(folder).acquire()
    return str(caught.value)


def test_second_process_is_refused_and_told_who_holds_it(tmp_path, held):
    process = held()
    assert refused(tmp_path) == (
        f"another training uses {tmp_path} ({said_by(tmp_path, process.pid)}): wait for it, or give another model_path"
    )


def test_refused_again_and_again(tmp_path, held):
    held()
    assert refused(tmp_path) == refused(tmp_path)


def test_free_after_the_holder_was_killed(tmp_path, held):
    process = held()
    process.send_signal(signal.SIGKILL)
    process.wait()
    lock = Lock(tmp_path)
    lock.acquire()
    assert (tmp_path / ".lock").read_text().startswith(f"{os.getpid()}\n{socket.gethostname()}\n")
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
        assert refused(path) == f"another training of this process uses {tmp_path}: give it another model_path"
    lock.release()
    lock.release()
    lock.acquire()
    lock.release()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_child_is_refused_while_its_parent_works_and_not_afterwards(tmp_path):
    lock = Lock(tmp_path)
    lock.acquire()
    assert in_child(lambda: refused(tmp_path)) == (
        f"another training uses {tmp_path} ({said_by(tmp_path, os.getpid())}): wait for it, or give another model_path"
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


READS = {
    "its file is read": lambda folder: (folder / ".lock").read_text(),
    "the folder is copied": lambda folder: shutil.copytree(folder, folder.with_name("copy")),
    "a child reads its file": lambda folder: in_child((folder / ".lock").read_text),
    "another program reads its file": lambda folder: subprocess.run(["cat", folder / ".lock"], check=True),
    "another lock was refused": refused,
    "somebody asked who holds it": holder_of,
    "its file is deleted": lambda folder: (folder / ".lock").unlink(),
    "its file is replaced": lambda folder: shutil.copy(folder / ".lock", folder / "x").replace(folder / ".lock"),
    "the folder is deleted": shutil.rmtree,
}
SECOND = (
    "import sys; from pathlib import Path; from accmt.checkpoint.lock import Lock; Lock(Path(sys.argv[1])).acquire()"
)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_it_holds_whatever_the_process_does_with_the_folder(tmp_path):
    folders = {what: tmp_path / str(number) / "model" for number, what in enumerate(READS)}
    locks = [Lock(folder) for folder in folders.values()]
    for lock in locks:
        lock.acquire()
    for what, folder in folders.items():
        READS[what](folder)
    tries = [
        subprocess.Popen([sys.executable, "-c", SECOND, folder], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for folder in folders.values()
    ]
    for what, second in zip(folders, tries, strict=True):
        assert f"another training uses {folders[what]} (process " in second.communicate()[1], what
    for lock in locks:
        lock.release()
    assert [holder_of(folder) for folder in folders.values()] == [None] * len(folders)
    assert in_child(lambda: str([Lock(folder).acquire() for folder in folders.values()])).startswith("[None")


def test_a_refused_lock_leaves_the_descriptors_of_others_alone(tmp_path, held):
    held()
    lock = Lock(tmp_path)
    with pytest.raises(RuntimeError):
        lock.acquire()
    with open(os.devnull) as other:
        lock.release()
        os.fstat(other.fileno())


@pytest.mark.parametrize("text", ["", "\x1b[2J\n\x1b[2J\n\x1b[2J\n", "9" * 500, "12\n" * 100, "é\n\0"])
def test_what_is_written_in_the_file_of_a_lock_is_shown_only_if_it_is_what_belongs_there(tmp_path, text):
    lock = Lock(tmp_path)
    lock.acquire()
    (tmp_path / ".lock").write_text(text)
    said = refused(tmp_path)
    assert said.isprintable()
    assert re.search(r"\(process (unknown|12)( on 12)?\)", said)
    lock.release()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM])
def test_a_file_system_without_locks_is_a_warning_and_on_the_same_machine_it_holds(tmp_path, monkeypatch, code):
    def fails(*arguments):
        raise OSError(code, "No locks available")

    for name in ("lockf", "flock", "fcntl"):
        monkeypatch.setattr(fcntl, name, fails)
    lock = Lock(tmp_path)
    assert lock.acquire() == (
        f"{tmp_path} cannot be locked (No locks available): make sure that no training on another machine uses it"
    )
    assert holder_of(tmp_path).is_here
    assert "another training of this process" in refused(tmp_path)
    lock.release()


def test_where_the_system_does_not_know_the_kind_of_lock_another_is_taken(tmp_path, monkeypatch):
    def fails(*arguments):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(fcntl, "fcntl", fails)
    monkeypatch.setattr(lock_module, "_address", lambda folder: None)
    lock = Lock(tmp_path)
    lock.acquire()
    assert "another training of this process" in refused(tmp_path)
    lock.release()
    lock.acquire()
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

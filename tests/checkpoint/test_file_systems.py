"""File systems that cannot flush, exchange or rename folders, and calls that fail, one after the other."""

import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from accmt.checkpoint import publish
from accmt.checkpoint.archive import archive_training
from accmt.checkpoint.checkpoints import Checkpoints
from accmt.files import durable


@pytest.fixture(autouse=True)
def begun():
    durable.forget_warnings()


def publish_one(target, mark):
    with publish.publishing(target) as folder:
        (folder / "sub").mkdir()
        for name in ("mark", "sub/more"):
            (folder / name).write_text(mark * 1000)
    publish.end_threads()
    return target


def mark_of(target):
    return (target / "mark").read_text()[:3]


def hidden(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


class Calls:
    """Counts calls that touch the disk, once `target` has been published, and lets one of them fail."""

    def __init__(self, fails, code):
        self.count, self._fails, self._code, self.on = 0, fails, code, False

    def put_in(self, monkeypatch):
        for place, name in (
            *((os, name) for name in ("mkdir", "rename", "fsync", "open", "unlink", "rmdir", "scandir")),
            (Path, "open"),
            (Path, "write_text"),
            (Path, "is_dir"),
            (publish, "_exchange"),
            (publish, "flush_directory"),
            (shutil, "rmtree"),
            (shutil, "copyfile"),
        ):
            monkeypatch.setattr(place, name, self._around(getattr(place, name)))

    def _around(self, function):
        def call(*arguments, **options):
            if self.on:
                self.count += 1
                if self.count == self._fails:
                    raise OSError(self._code, os.strerror(self._code))
            return function(*arguments, **options)

        return call


def across(*arguments):
    ctypes.set_errno(errno.EXDEV)
    return -1


def no_exchange(monkeypatch):
    monkeypatch.setattr(publish, "_renameat2", lambda: across)


def as_overlay(monkeypatch):
    """Folders that were there before cannot be renamed, as in a lower layer of an overlay."""
    no_exchange(monkeypatch)
    rename = Path.rename

    def renamed(self, other):
        if self.is_dir() and not self.name.startswith((publish.TEMPORARY, publish.REPLACED)):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", renamed)


WAYS = {"new": None, "exchange": lambda monkeypatch: None, "two renames": no_exchange, "copy": as_overlay}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore:.*(is complete, but|cannot flush).*:UserWarning")
def test_whichever_call_fails_the_target_is_as_it_was_or_new_and_complete(tmp_path, way):
    """And whether it raised says which; the next start finds it so as well, with nothing beside it."""
    outcomes, number = [], 0
    while True:
        number += 1
        calls, parent = Calls(number, errno.EIO), tmp_path / str(number)
        parent.mkdir()
        target = parent / "best"
        if way != "new":
            publish_one(target, "old")
        raised = False
        with pytest.MonkeyPatch.context() as monkeypatch:
            (WAYS[way] or WAYS["exchange"])(monkeypatch)
            calls.put_in(monkeypatch)
            calls.on = True
            try:
                publish_one(target, "new")
            except OSError:
                raised = True
            calls.on = False
        if calls.count < number:
            break
        for _ in ("now", "at the next start"):
            assert target.exists() == (not raised or way != "new"), number
            if target.exists():
                assert publish.folder_problem(target) is None, number
                assert mark_of(target) == ("old" if raised else "new"), number
            publish.recover(parent)
        assert hidden(parent) == [], number
        outcomes.append(raised)
    assert outcomes.index(False) > 5
    assert True not in outcomes[outcomes.index(False) + 1 :] or way == "copy"


def test_what_fails_after_the_exchange_is_said(tmp_path, monkeypatch):
    target = publish_one(tmp_path / "best", "old")
    flush = publish.flush_directory

    def fails(folder):
        if folder == tmp_path:
            raise OSError(errno.EIO, "Input/output error")
        flush(folder)

    monkeypatch.setattr(publish, "flush_directory", fails)
    text = r"^best is complete, but may not survive a power cut: Input/output error$"
    with pytest.warns(UserWarning, match=text):
        publish_one(target, "new")
    assert mark_of(target) == "new"
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM])
@pytest.mark.parametrize("what", ["folders", "files"])
def test_what_cannot_be_flushed_is_said_once(tmp_path, monkeypatch, code, what):
    fsync = os.fsync

    def fails(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}") == (what == "folders"):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fails)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for mark in ("old", "new"):
            publish_one(tmp_path / "best", mark)
        publish.remove(publish_one(tmp_path / "other", "one"))
    assert len(caught) == 1
    assert f"cannot flush {what} to the disk ({os.strerror(code)})" in str(caught[0].message)
    assert mark_of(tmp_path / "best") == "new"
    assert publish.folder_problem(tmp_path / "best") is None


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_fault_is_not_taken_for_a_file_system_that_cannot(tmp_path, monkeypatch, code):
    def fails(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match=os.strerror(code)):
        publish_one(tmp_path / "best", "new")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EINVAL])
def test_a_folder_that_cannot_be_opened_is_one_that_cannot_be_flushed(tmp_path, monkeypatch, code):
    opened = os.open

    def fails(path, *arguments, **options):
        if os.path.isdir(path):
            raise OSError(code, os.strerror(code))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", fails)
    with pytest.warns(UserWarning, match="cannot flush folders"):
        publish_one(tmp_path / "best", "new")
    assert publish.folder_problem(tmp_path / "best") is None


@pytest.mark.parametrize(("call", "done"), [("mkdir", "added to"), ("rename", "renamed in"), ("rmdir", "deleted in")])
def test_where_folders_cannot_be_published_is_found_out_before(tmp_path, monkeypatch, call, done):
    def fails(*arguments):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    publish.require_writable(tmp_path)
    monkeypatch.setattr(Path, call, fails)
    with pytest.raises(OSError, match=rf"nothing can be {done} '{tmp_path.name}' \(Function not implemented\)"):
        publish.require_writable(tmp_path)
    assert len(hidden(tmp_path)) == (call == "rmdir")


def published_by_child(parent, last):
    """Publish in a process that dies at a call that changes something; whether it came to the end."""
    child = os.fork()
    if child == 0:
        publish._renameat2 = lambda: None
        seen = 0

        def heard(event, arguments):
            nonlocal seen
            if event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "shutil.copyfile"):
                seen += 1
                if seen == last:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            with publish.publishing(parent / "best") as folder:
                (folder / "mark").write_text("new" * 1000)
                sys.addaudithook(heard)
            publish.end_threads()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] == 0


@pytest.fixture
def overlay(tmp_path):
    """Makes what lies in a folder the lower layer of an overlay, as an image of a container has it."""
    mounted = []

    def mount(lower):
        place = tmp_path / f"overlay-{len(mounted)}"
        for name in ("upper", "work", "merged"):
            (place / name).mkdir(parents=True)
        layers = f"lowerdir={lower},upperdir={place / 'upper'},workdir={place / 'work'}"
        command = ["mount", "-t", "overlay", "overlay", "-o", layers, place / "merged"]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode:
            pytest.skip(f"no overlay can be mounted here: {ran.stderr.strip()}")
        mounted.append(place / "merged")
        return place / "merged"

    yield mount
    for merged in mounted:
        subprocess.run(["umount", merged], check=True)


@pytest.mark.parametrize("way", ["exchange", "two renames"])
def test_a_lower_layer_of_an_overlay(tmp_path, overlay, monkeypatch, way):
    lower = tmp_path / "lower"
    for name in ("best", "checkpoints/checkpoint-0001-step-1", "checkpoints/checkpoint-0002-step-2"):
        (lower / name).parent.mkdir(parents=True, exist_ok=True)
        publish_one(lower / name, "old")
    merged = overlay(lower)
    with pytest.raises(OSError, match="cross-device"):
        (merged / "best").rename(merged / "other")
    if way == "two renames":
        monkeypatch.setattr(publish, "_renameat2", lambda: None)
    publish_one(merged / "best", "new")
    assert (mark_of(merged / "best"), publish.folder_problem(merged / "best")) == ("new", None)
    Checkpoints(merged).prune(1)
    assert [checkpoint.index for checkpoint in Checkpoints(merged).all()] == [2]
    aside = archive_training(merged, [merged / "best"])
    assert sorted(path.name for path in merged.iterdir()) == ["earlier-1"]
    assert mark_of(aside / "checkpoints" / "checkpoint-0002-step-2") == "old"
    assert publish.folder_problem(aside / "best") is None
    assert mark_of(lower / "best") == "old"


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_killed_at_every_call_on_an_overlay(tmp_path, overlay):
    publish_one(tmp_path / "lower" / "best", "old")
    marks, number = [], 0
    while True:
        number += 1
        merged = overlay(tmp_path / "lower")
        ended = published_by_child(merged, number)
        publish.recover(merged)
        assert [path.name for path in merged.iterdir()] == ["best"]
        assert publish.folder_problem(merged / "best") is None
        marks.append(mark_of(merged / "best"))
        if ended:
            break
    assert (marks[0], marks[-1]) == ("old", "new")
    assert marks == sorted(marks, reverse=True)

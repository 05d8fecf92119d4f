"""A published directory is complete or not there, whatever happens to the process, and each kind of damage is named."""

import ctypes
import errno
import json
import os
import random
import shutil
import signal
import threading
import time
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from accmt.checkpoint import publish


def write(folder, mark="a"):
    (folder / "sub").mkdir()
    (folder / "weights.bin").write_bytes(mark.encode() * 1000)
    (folder / "config.json").write_text(f'{{"mark": "{mark}"}}')
    (folder / "sub" / "more.bin").write_bytes(mark.encode() * 300)


def publish_one(target, mark="a"):
    with publish.publishing(target) as folder:
        write(folder, mark)
    publish.end_threads()
    return target


def mark_of(target):
    return json.loads((target / "config.json").read_text())["mark"]


def hidden(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_published_directory_is_complete_and_alone(tmp_path):
    target = publish_one(tmp_path / "best")
    assert publish.folder_problem(target) is None
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    files = json.loads((target / publish.MANIFEST).read_text())["files"]
    assert list(files) == ["config.json", "sub/more.bin", "weights.bin"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("exists", [True, False])
def test_exception_in_the_block_leaves_everything_as_it_was(tmp_path, error, exists):
    target = tmp_path / "best"
    if exists:
        publish_one(target, "old")
    with pytest.raises(error), publish.publishing(target) as folder:  # noqa: PT012  (the block is what is tested)
        write(folder, "new")
        raise error
    assert target.exists() == exists
    assert not hidden(tmp_path)
    if exists:
        assert publish.folder_problem(target) is None
        assert mark_of(target) == "old"


@pytest.mark.parametrize("code", [None, errno.EINVAL, errno.ENOSYS, errno.EPERM])
def test_replaced_also_where_directories_cannot_be_swapped(tmp_path, monkeypatch, code):
    def refused(*arguments):
        ctypes.set_errno(code)
        return -1

    monkeypatch.setattr(publish, "_renameat2", lambda: None if code is None else refused)
    target = publish_one(tmp_path / "best", "old")
    publish_one(target, "new")
    assert publish.folder_problem(target) is None
    assert mark_of(target) == "new"
    assert not hidden(tmp_path)


def test_another_error_of_the_swap_is_raised_and_the_target_stays(tmp_path, monkeypatch):
    target = publish_one(tmp_path / "best", "old")

    def fails(*arguments):
        ctypes.set_errno(errno.EIO)
        return -1

    monkeypatch.setattr(publish, "_renameat2", lambda: fails)
    with pytest.raises(OSError, match="Input/output error"):
        publish_one(target, "new")
    assert mark_of(target) == "old"
    assert not hidden(tmp_path)


def test_failing_second_rename_puts_the_former_back(tmp_path, monkeypatch):
    target = publish_one(tmp_path / "best", "old")
    monkeypatch.setattr(publish, "_renameat2", lambda: None)
    rename = Path.rename

    def fails(self, other):
        if self.name.startswith(publish.TEMPORARY):
            raise OSError(errno.EIO, "injected")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="injected"):
        publish_one(target, "new")
    assert publish.folder_problem(target) is None
    assert mark_of(target) == "old"
    assert not hidden(tmp_path)


@pytest.mark.parametrize("function", ["fsync", "rename"])
def test_failing_disk_leaves_the_former(tmp_path, monkeypatch, function):
    target = publish_one(tmp_path / "best", "old")

    def fails(*arguments, **keywords):
        raise OSError(errno.EIO, "injected")

    monkeypatch.setattr(publish, "_renameat2", lambda: None)
    monkeypatch.setattr(os, function, fails)
    with pytest.raises(OSError, match="injected"):
        publish_one(target, "new")
    monkeypatch.undo()
    publish.recover(tmp_path)
    assert publish.folder_problem(target) is None
    assert mark_of(target) == "old"


@pytest.mark.parametrize("kind", ["file", "link to a directory", "broken link"])
def test_whatever_stands_at_the_target_is_replaced(tmp_path, kind):
    target, elsewhere = tmp_path / "best", tmp_path / "elsewhere"
    if kind == "file":
        target.write_text("something")
    else:
        if kind == "link to a directory":
            elsewhere.mkdir()
            (elsewhere / "precious").write_text("kept")
        target.symlink_to(elsewhere)
    publish_one(target, "new")
    assert publish.folder_problem(target) is None
    assert not hidden(tmp_path)
    assert kind != "link to a directory" or (elsewhere / "precious").read_text() == "kept"


def forked(work):
    """Start a process that does some work and then ends at once; return its id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def publish_until_killed(target, way):
    if way == "fallback":
        publish._renameat2 = lambda: None
    for number in count(1):
        with publish.publishing(target) as folder:
            (folder / "sub").mkdir()
            for name in ("a.bin", "sub/b.bin", "c.bin"):
                (folder / name).write_bytes(str(number).encode() * 5000)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("way", ["exchange", "fallback"])
def test_killed_at_random_moments_while_replacing(tmp_path, way):
    chance = random.Random(0)
    target = tmp_path / "best"
    left_behind = 0
    for number in range(300):
        if number >= 30 and left_behind and target.exists():  # on a busy machine it takes more
            break
        process = forked(partial(publish_until_killed, target, way))
        time.sleep(chance.uniform(0.005, 0.03))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        if way == "exchange" and target.exists():
            assert publish.folder_problem(target) is None
        existed = target.exists() or any(name.startswith(publish.REPLACED) for name in hidden(tmp_path))
        left_behind += bool(hidden(tmp_path))
        publish.recover(tmp_path)
        assert not hidden(tmp_path)
        assert target.exists() == existed
        if existed:
            assert publish.folder_problem(target) is None
            numbers = {(target / name).read_bytes() for name in ("a.bin", "sub/b.bin", "c.bin")}
            assert len(numbers) == 1, "files of two publications are mixed"
    assert target.exists()
    assert left_behind, "no kill ever hit a publication: the test proves nothing"


def publish_and_die_between_two_renames(target):
    publish._renameat2 = lambda: None
    rename = Path.rename

    def deadly(self, other):
        rename(self, other)
        if Path(other).name.startswith(publish.REPLACED):
            os.kill(os.getpid(), signal.SIGKILL)

    Path.rename = deadly
    publish_one(target, "new")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_killed_between_the_two_renames_is_put_back(tmp_path):
    target = publish_one(tmp_path / "best-of-all", "old")
    _, status = os.waitpid(forked(partial(publish_and_die_between_two_renames, target)), 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert not target.exists()
    publish.recover(tmp_path)
    assert publish.folder_problem(target) is None
    assert mark_of(target) == "old"
    assert not hidden(tmp_path)


@pytest.mark.parametrize("way", ["exchange", "fallback"])
def test_names_of_240_bytes(tmp_path, monkeypatch, way):
    if way == "fallback":
        monkeypatch.setattr(publish, "_renameat2", lambda: None)
    target = publish_one(tmp_path / ("ä" * 120), "old")
    publish_one(target, "new")
    assert mark_of(target) == "new"
    publish.remove(target)
    publish.end_threads()
    assert not list(tmp_path.iterdir())


def test_what_was_replaced_is_deleted_while_the_caller_goes_on(tmp_path, monkeypatch):
    target, may_end, delete = publish_one(tmp_path / "best", "old"), threading.Event(), publish._delete

    def slow(path):
        assert may_end.wait(60), "the caller waits as well"
        delete(path)

    monkeypatch.setattr(publish, "_delete", slow)
    with publish.publishing(target) as folder:
        write(folder, "new")
    publish.remove(target)
    assert not target.exists()
    assert len(hidden(tmp_path)) == 2
    may_end.set()
    publish.end_threads()
    assert not hidden(tmp_path)


def test_files_and_manifest_are_flushed_at_the_same_time(tmp_path, monkeypatch):
    together = threading.Barrier(4)
    monkeypatch.setattr(publish, "flush_file", lambda path: together.wait(60))
    assert publish.folder_problem(publish_one(tmp_path / "best")) is None


def test_recover_touches_nothing_else(tmp_path):
    target = publish_one(tmp_path / "best")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".tmp-history.jsonl-0123").write_text("a file that was being written")
    (tmp_path / ".trash-link").symlink_to(target)
    (tmp_path / f"{publish.REPLACED}best-01234567").mkdir()
    (tmp_path / f"{publish.REPLACED}runs").mkdir()
    publish.recover(tmp_path)
    publish.recover(tmp_path / "not there")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", ".old-runs", "best", "notes.txt"]
    assert publish.folder_problem(target) is None


def test_remove_deletes(tmp_path):
    publish.remove(publish_one(tmp_path / "best"))
    publish.end_threads()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["weights.bin", "config.json", "sub/more.bin"])
def test_one_flipped_bit_anywhere_is_seen(tmp_path, name):
    path = publish_one(tmp_path / "best") / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    expected = f"{name} is damaged: its content does not match its hash"
    assert publish.folder_problem(tmp_path / "best") == expected
    assert publish.folder_problem(tmp_path / "best", read=False) is None


def test_flipped_bits_of_the_manifest_are_seen(tmp_path):
    """All of them that change what it says: which letters a key has, and the version, say nothing about the files."""
    target = publish_one(tmp_path / "best")
    manifest = target / publish.MANIFEST
    content = manifest.read_bytes()
    said = json.loads(content)["files"]
    chance = random.Random(0)
    for _ in range(300):
        damaged = bytearray(content)
        damaged[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        manifest.write_bytes(damaged)
        if publish.folder_problem(target) is None:
            assert json.loads(damaged)["files"] == said


def replace_by_link(path):
    elsewhere = path.parent.parent / f"elsewhere-{path.name}"
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


DAMAGES = [
    (lambda f: (f / "weights.bin").write_bytes(b"a" * 999), "weights.bin has 999 bytes instead of 1,000"),
    (lambda f: (f / "weights.bin").write_bytes(b""), "weights.bin has 0 bytes instead of 1,000"),
    (lambda f: (f / "sub" / "more.bin").unlink(), "sub/more.bin is missing"),
    (lambda f: shutil.rmtree(f / "sub"), "sub/more.bin is missing"),
    (lambda f: (f / "pickle.pkl").write_bytes(b""), "pickle.pkl does not belong to it"),
    (lambda f: (f / "sub" / ".x").write_bytes(b""), "sub/.x does not belong to it"),
    (lambda f: (f / "link").symlink_to("nowhere"), "link does not belong to it"),
    (lambda f: replace_by_link(f / "weights.bin"), "weights.bin is not a regular file"),
    (lambda f: replace_by_link(f / "sub"), "sub/more.bin is missing"),
    (lambda f: ((f / "weights.bin").unlink(), os.mkfifo(f / "weights.bin")), "weights.bin is not a regular file"),
    (lambda f: ((f / "weights.bin").unlink(), (f / "weights.bin").mkdir()), "weights.bin is missing"),
    (lambda f: (f / publish.MANIFEST).unlink(), "it has no MANIFEST.json"),
    (lambda f: replace_by_link(f / publish.MANIFEST), "it has no MANIFEST.json"),
    (lambda f: replace_by_link(f), "it is not a directory"),
    (lambda f: (shutil.rmtree(f), f.write_text("")), "it is not a directory"),
    (lambda f: shutil.rmtree(f), "it is not a directory"),
]


@pytest.mark.parametrize(("damage", "expected"), DAMAGES)
@pytest.mark.parametrize("read", [True, False])
def test_each_kind_of_damage_is_named(tmp_path, damage, expected, read):
    (tmp_path / "below").mkdir()
    target = publish_one(tmp_path / "below" / "best")
    damage(target)
    assert publish.folder_problem(target, read=read) == expected


def test_what_a_hub_adds_to_a_folder_is_no_damage(tmp_path):
    target = publish_one(tmp_path / "best")
    for name in ("README.md", ".gitattributes", ".cache/huggingface/download/weights.bin.metadata"):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text("a model")
    assert publish.folder_problem(target) is None
    (target / "sub" / "README.md").write_text("not where a hub puts it")
    assert publish.folder_problem(target) == "sub/README.md does not belong to it"


def with_file(size, sha256="0", name="../outside"):
    return json.dumps({"schema": 1, "files": {name: {"size": size, "sha256": sha256}}})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "its MANIFEST.json cannot be read: Expecting value: line 1 column 1 (char 0)"),
        ("[]", "its MANIFEST.json cannot be read: [] is not an object"),
        ("{}", "its MANIFEST.json cannot be read: schema is missing"),
        ('{"schema": 1, "files": 3}', "its MANIFEST.json cannot be read: files: 3 is not of type dict"),
        ('{"schema": 1, "files": {"a": 3}}', "its MANIFEST.json cannot be read: files.a: 3 is not an object"),
        (
            '{"files": {"a": {"size": Infinity, "sha256": ""}}}',
            "its MANIFEST.json cannot be read: Infinity is not JSON",
        ),
        ("[" * 100_000, "its MANIFEST.json cannot be read: it is nested too deeply"),
        (with_file(3), "../outside is missing"),
        (with_file(3, name="/etc/hostname"), "/etc/hostname is missing"),
        (with_file(3, name="sub/../weights.bin"), "sub/../weights.bin is missing"),
        ('{"schema": 1, "files": {}}', "config.json does not belong to it"),
    ],
)
def test_garbage_in_the_manifest(tmp_path, text, expected):
    target = publish_one(tmp_path / "best")
    (tmp_path / "outside").write_text("abc")
    (target / publish.MANIFEST).write_text(text)
    assert publish.folder_problem(target) == expected


def test_manifest_that_is_not_text(tmp_path):
    target = publish_one(tmp_path / "best")
    (target / publish.MANIFEST).write_bytes(b"\xff\xfe\x00")
    assert publish.folder_problem(target) == (
        "its MANIFEST.json cannot be read: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"
    )


def test_a_manifest_that_is_too_long_is_not_read(tmp_path, monkeypatch):
    target = publish_one(tmp_path / "best")
    os.truncate(target / publish.MANIFEST, 2**40)
    monkeypatch.setattr(publish, "read_json", lambda path, kind: pytest.fail(f"{path.name} was read"))
    assert publish.folder_problem(target) == "its MANIFEST.json is too long to be one"


def test_unreadable_disk_is_a_problem_and_not_a_crash(tmp_path, monkeypatch):
    target = publish_one(tmp_path / "best")

    def fails(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(publish, "hash_of", fails)
    assert publish.folder_problem(target).startswith("it cannot be read: [Errno 5] Input/output error")


def test_contents_are_read_only_when_asked_and_only_after_sizes(tmp_path, monkeypatch):
    target = publish_one(tmp_path / "best")
    (target / "weights.bin").write_bytes(b"")
    monkeypatch.setattr(publish, "hash_of", lambda path: pytest.fail(f"{path.name} was read"))
    assert publish.folder_problem(target) == "weights.bin has 0 bytes instead of 1,000"
    (target / "weights.bin").write_bytes(b"b" * 1000)
    assert publish.folder_problem(target, read=False) is None


def test_only_regular_files_are_published(tmp_path):
    target = publish_one(tmp_path / "best", "old")
    with (
        pytest.raises(ValueError, match=r"^link is not a regular file: only those can be published$"),
        publish.publishing(target) as folder,
    ):
        (folder / "link").symlink_to("/etc/hostname")
    with (
        pytest.raises(ValueError, match=r"^MANIFEST.json is the name of the list of files: no file can have it$"),
        publish.publishing(target) as folder,
    ):
        (folder / publish.MANIFEST).write_text("{}")
    assert mark_of(target) == "old"
    assert not hidden(tmp_path)

"""The local history survives crashes, and what is read from it is what was written."""

import errno
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from accmt.tracking import journal
from accmt.tracking.journal import Journal

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "history.jsonl"


def filled(path, count):
    log = Journal(path)
    for number in range(count):
        log.append({"step": number})
    return log


def steps(path):
    return [entry["step"] for entry in journal.read(path)]


def test_append_and_read(path):
    assert journal.read(path) == []
    log = Journal(path)
    entries = [{"a": 1.5, "b": ["x", None, True]}, {"text": "zwei\nZeilen\u2028 ü \ud800"}, {}]
    for entry in entries:
        log.append(entry)
    assert journal.read(path) == entries
    assert log.lines == len(path.read_bytes().splitlines()) == 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_is_strict_and_a_refused_entry_leaves_no_trace(path, value):
    log = filled(path, 1)
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        log.append({"loss": value})
    assert log.lines == 1
    assert steps(path) == [0]


@pytest.mark.parametrize(("keep", "left"), [(0, []), (1, [0]), (3, [0, 1, 2]), (5, [0, 1, 2])])
def test_cut(path, keep, left):
    filled(path, 3)
    log = Journal(path)
    log.cut(keep)
    assert steps(path) == left
    assert log.lines == len(left), "lines that are not there would be counted in the next checkpoint"
    log.append({"step": 9})
    assert steps(path) == [*left, 9]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_cut_without_a_file(path):
    log = Journal(path)
    log.cut(0)
    assert not path.exists()
    log.cut(2)
    assert (log.lines, journal.read(path)) == (0, [])


@pytest.mark.parametrize("rest", [b'{"step": ', b"{", b'{"step": 7}', b"\0\0\0\0", b"\xff\xfe"])
@pytest.mark.parametrize("count", [0, 2])
def test_half_written_last_line_is_left_out_and_written_over(path, rest, count):
    filled(path, count)
    with path.open("ab") as file:
        file.write(rest)
    assert steps(path) == list(range(count))
    log = Journal(path)
    log.append({"step": count})
    assert steps(path) == list(range(count + 1))
    assert path.read_bytes().endswith(b"}\n")
    assert path.read_bytes().count(b"{") == count + 1


@pytest.mark.parametrize("rest", [b'{"step": ', b"\xff\xfe"])
def test_half_written_last_line_is_cut(path, rest):
    filled(path, 2)
    with path.open("ab") as file:
        file.write(rest)
    Journal(path).cut(2)
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n'


def test_damaged_line_is_named(path):
    filled(path, 3)
    path.write_text(path.read_text().replace("1", "?"))
    with pytest.raises(ValueError, match="line 2 is damaged") as caught:
        journal.read(path)
    assert str(caught.value) == f"{path}, line 2 is damaged: Expecting value: line 1 column 10 (char 9)"


@pytest.mark.parametrize("function", ["fsync", "write"])
def test_failing_disk_leaves_whole_lines(path, monkeypatch, function):
    log = filled(path, 2)

    def fails(*arguments):
        raise OSError(errno.EIO, "injected")

    if function == "fsync":
        monkeypatch.setattr(os, "fsync", fails)
    else:
        monkeypatch.setattr(Path, "open", failing_open(Path.open))
    assert re.search(r"line 3 waits to be written: .*(injected|could not be written)", log.append({"step": 2}))
    with pytest.raises(OSError, match=r"injected|could not be written"):
        log.append({"step": 3})
    with pytest.raises(OSError, match=r"injected|could not be written"):
        log.flush()
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n'
    monkeypatch.undo()
    assert log.lines == 4
    assert log.append({"step": 4}) is None
    assert steps(path) == [0, 1, 2, 3, 4]
    log.flush()
    assert steps(path) == [0, 1, 2, 3, 4]


def test_lines_that_wait_are_written_by_themselves(path, monkeypatch):
    log = filled(path, 1)
    monkeypatch.setattr(Path, "open", failing_open(Path.open))
    assert "line 2 waits to be written" in log.append({"step": 1})
    monkeypatch.undo()
    log.flush()
    assert steps(path) == [0, 1]


def failing_open(original):
    """Files that take half of what they are given, as those of a full disk do."""

    class Half:
        def __init__(self, file):
            self._file = file

        def __getattr__(self, name):
            return getattr(self._file, name)

        def __enter__(self):
            return self

        def __exit__(self, *arguments):
            self._file.close()

        def write(self, data):
            return self._file.write(data[: len(data) // 2])

    return lambda self, *arguments, **keywords: Half(original(self, *arguments, **keywords))


def test_a_process_that_does_not_write_counts_along(path):
    log = Journal(path, writes=False)
    log.append({"a": 1})
    log.append({"a": 2})
    assert log.lines == 2
    log.cut(1)
    assert log.lines == 1
    assert not path.exists()


WRITER = """
import sys
from pathlib import Path
from accmt.tracking.journal import Journal, read
log = Journal(Path(sys.argv[1]))
number = len(read(log.path))
print("ready", flush=True)
while True:
    log.append({"step": number, "filling": "x" * 5000})
    number += 1
"""


def test_killed_while_writing(path):
    for turn in range(10):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.003 * turn)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    found = steps(path)
    assert found == list(range(len(found)))
    assert len(found) > 10


def test_entries_are_lines_of_plain_json(path):
    Journal(path).append({"values": {"dev": {"accuracy": 0.5}}})
    assert json.loads(path.read_text()) == {"values": {"dev": {"accuracy": 0.5}}}

"""An outbox holds what waits through every kind of end, and only for as long as it waits."""

import json
import math
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from accmt.tracking.entries import Ended, File, from_data, to_line
from accmt.tracking.segment import Header, Recipient, Segment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accmt.tracking.outbox import FOLDER, Outbox, outboxes_in, waiting_in
from accmt.tracking.tracker import Logged, Resumption

ENTRIES = [
    Logged({"loss": 0.5, "recall@10": math.inf}, 1, 1_000),
    File(Path("/notes.txt"), False, 1_001),
    Logged({"loss": -0.25}, 2, 1_002),
    File(Path("/model"), True, 1_003),
    Ended("FINISHED", 1_004),
]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "model" / FOLDER


def read(outbox):
    """All entries that wait."""
    entries = []
    while found := outbox.read():
        entries += found
    return [entry for entry, _ in entries]


def filled(outbox, entries=ENTRIES):
    places = [outbox.add(entry) for entry in entries]
    return outbox, places


def test_what_was_added_is_there_in_another_process(outbox_for, folder):
    filled(outbox_for("mine"))
    assert len(list(folder.iterdir())) == 1
    assert read(outbox_for("mine")) == ENTRIES


def test_nothing_is_written_before_something_waits(outbox_for, folder):
    outbox = outbox_for("mine")
    assert (read(outbox), str(outbox.left()), folder.exists()) == ([], "", False)
    outbox.release()
    outbox.remove()
    assert not folder.exists()


@pytest.mark.parametrize("settled", range(len(ENTRIES) + 1))
def test_what_was_sent_waits_no_more(outbox_for, settled):
    outbox, places = filled(outbox_for("mine"))
    if settled:
        outbox.settle(places[settled - 1])
    assert read(outbox_for("mine")) == ENTRIES[settled:]
    assert str(outbox_for("mine").left()) == str(outbox.left())


def test_the_outbox_is_gone_when_nothing_waits(outbox_for, folder):
    outbox, places = filled(outbox_for("mine"))
    outbox.settle(places[-1])
    assert not outbox.left()
    outbox.remove()
    assert not folder.exists()


def test_another_outbox_keeps_the_folder(outbox_for, folder):
    filled(outbox_for("mine"))
    other, _ = filled(outbox_for("other"))
    other.remove()
    assert read(outbox_for("mine")) == ENTRIES
    assert len(list(folder.iterdir())) == 1


def test_a_file_that_is_large_is_followed_by_another_and_goes_when_it_is_sent(outbox_for, folder):
    many = [Logged({"loss": float(step), "x" * 1000: 0.0}, step, step) for step in range(2800)]
    outbox, places = filled(outbox_for("mine"), many)
    assert len(list(folder.iterdir())) == 3
    assert read(outbox_for("mine")) == many
    assert read(outbox) == many
    outbox.settle(places[1500])
    assert len(list(folder.iterdir())) == 2
    assert read(outbox_for("mine")) == many[1501:]
    outbox.settle(places[-1])
    assert len(list(folder.iterdir())) == 1
    assert str(outbox.left()) == ""


def test_what_comes_while_it_is_read(outbox_for):
    outbox, places = filled(outbox_for("mine"), ENTRIES[:1])
    assert read(outbox) == ENTRIES[:1]
    outbox.add(ENTRIES[1])
    outbox.settle(places[0])
    assert read(outbox) == ENTRIES[1:2]
    assert read(outbox) == []
    outbox.add(ENTRIES[2])
    assert read(outbox) == ENTRIES[2:3]


def test_a_process_that_is_killed_in_the_middle_of_a_write(outbox_for, folder):
    """Cut off at every byte: the complete lines are there, and it can be written on."""
    outbox, places = filled(outbox_for("mine"))
    outbox.settle(places[0])
    [path] = folder.iterdir()
    content = path.read_bytes()
    start = len(content.splitlines(keepends=True)[0])
    for size in range(start, len(content) + 1):
        path.write_bytes(content[:size])
        complete = content[:size].count(b"\n") - 1
        sent = complete == len(ENTRIES) + 1
        found = outbox_for("mine")
        assert read(found) == ENTRIES[:complete][sent:]
        found.add(ENTRIES[0])
        assert read(found) == ENTRIES[:1]
        assert read(outbox_for("mine")) == [*ENTRIES[:complete][sent:], ENTRIES[0]]


def test_damaged_lines_are_passed_over_and_counted(outbox_for, folder):
    filled(outbox_for("mine"))
    [path] = folder.iterdir()
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = b"\0" * 20 + b"\n"
    lines[3] = b'{"time": 1, "step": "two", "values": {"loss": 1.0}}\n'
    lines[3] += b'{"time": 1, "step": 2, "values": {"loss": 1%s}}\n' % (b"0" * 400)
    lines.insert(4, b"[]\n")
    lines.insert(5, b'{"sent": "x"}\n{"time": 1, "status": "ASLEEP"}\n{"what": 1}\n')
    path.write_bytes(b"".join(lines))
    found = outbox_for("mine")
    assert read(found) == [ENTRIES[1], *ENTRIES[3:]]
    assert found.unreadable == 6


@pytest.mark.parametrize(
    "content", [b"\n", b"{}\n", b"nonsense\n", b'{"outbox": 2}\n', b'{"outbox": 1, "tracker": "mine"}\n', b"[1]\n"]
)
def test_a_file_that_is_no_outbox_is_left_alone(outbox_for, folder, content):
    folder.mkdir(parents=True)
    path = folder / "mine-training%2D1-0001.jsonl"
    path.write_bytes(content)
    outbox, places = filled(outbox_for("mine"))
    assert [problem.split(" is damaged: ")[0] for problem in outbox.problems] == [str(path)]
    outbox.settle(places[-1])
    outbox.remove()
    assert path.read_bytes() == content
    assert waiting_in(folder.parent)[0] == {}


def test_a_file_that_was_about_to_begin_is_none(outbox_for, folder):
    """The process was killed before the first line was complete, so that nothing can be in it."""
    filled(outbox_for("mine"))
    [path] = folder.iterdir()
    header = path.read_bytes().splitlines()[0]
    for size in (0, 1, len(header) // 2, len(header)):
        path.write_bytes(header[:size])
        outbox = outbox_for("mine")
        assert (read(outbox), outbox.problems, list(folder.iterdir())) == ([], [], [])


def test_other_files_and_links_are_nobodys_outbox(outbox_for, folder, tmp_path):
    filled(outbox_for("mine"))
    [path] = folder.iterdir()
    path.rename(tmp_path / "elsewhere.jsonl")
    path.symlink_to(tmp_path / "elsewhere.jsonl")
    (folder / "notes.txt").write_text("hello")
    (folder / "mine-2-0001.jsonl").mkdir()
    assert outboxes_in(folder.parent) == ([], [])


def test_only_the_owner_may_read_it(folder, tmp_path):
    """The address may hold a password."""
    Outbox(tmp_path / "model", Recipient("mlflow", "1", "http://me:secret@host", "x", {}, {}, 0)).add(ENTRIES[0])
    [path] = folder.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["../../etc/x", "a/b", "..", "größe", "x" * 300, "a\0b", "A b"])
def test_names_never_leave_the_folder(outbox_for, folder, name):
    filled(outbox_for(name, training=name))
    filled(outbox_for("plain"))
    assert read(outbox_for(name, training=name)) == ENTRIES
    assert len(list(folder.iterdir())) == 2
    assert [path for path in folder.parent.parent.rglob("*.jsonl") if path.parent != folder] == []


def test_trainings_and_places_have_their_own(outbox_for, folder):
    filled(outbox_for("mine"), ENTRIES[:1])
    filled(outbox_for("mine", training="training-12"), ENTRIES[1:2])
    place = Outbox(folder.parent, Recipient("mine", "training-1", "other place", "x", {}, {}, 0))
    filled(place, ENTRIES[2:3])
    assert [read(outbox_for("mine")), read(outbox_for("mine", training="training-12"))] == [ENTRIES[:1], ENTRIES[1:2]]
    found, problems = outboxes_in(folder.parent)
    assert sorted((o.recipient.training, o.recipient.location, str(o.left())) for o in found) == [
        (
            "training-1",
            "elsewhere",
            "2 values (step 1)",
        ),
        ("training-1", "other place", "1 value (step 2)"),
        ("training-12", "elsewhere", "1 artifact"),
    ]
    assert problems == []


def logged(step, time, resumption=None):
    return Logged({"loss": float(step)}, step, time, resumption)


def test_after_a_resumption_what_is_logged_again_waits_no_more(outbox_for):
    """The checkpoint is at step 2, and the last value before it has the time 12."""
    before = [logged(1, 10), logged(9, 11), logged(2, 12)]
    after = [logged(2, 13), logged(1, 14), logged(3, 15), logged(4, 16), Ended("FAILED", 17)]
    filled(outbox_for("mine"), [*before, *after])
    resumption = Resumption(2, 12, 100)
    continued = outbox_for("mine", resumption=resumption)
    assert not continued.is_taken_up
    new = [logged(3, 101, resumption), logged(4, 102, resumption)]
    filled(continued, new)
    kept = [*before, *after[:2], *new]
    assert read(continued) == kept
    assert str(continued.left()) == "7 values (steps 1 to 9)"
    assert read(outbox_for("mine", resumption=resumption)) == kept
    again = Resumption(3, 101, 200)
    third = outbox_for("mine", resumption=again)
    filled(third, [logged(4, 201, again)])
    assert read(third) == [*before, *after[:2], new[0], logged(4, 201, again)]


def test_until_something_is_added_a_resumption_changes_nothing(outbox_for, folder):
    filled(outbox_for("mine"), [logged(1, 10), logged(3, 12)])
    contents = {path: path.read_bytes() for path in folder.iterdir()}
    outbox_for("mine", resumption=Resumption(1, 10, 100)).release()
    assert {path: path.read_bytes() for path in folder.iterdir()} == contents
    assert str(outbox_for("mine").left()) == "2 values (steps 1 to 3)"


@pytest.mark.parametrize("when", ["before", "after", "never"])
def test_the_run_is_remembered(outbox_for, when):
    outbox = outbox_for("mine")
    if when == "before":
        outbox.begun({"id": 1})
    filled(outbox)
    if when == "after":
        outbox.begun({"id": 1})
    assert outbox_for("mine").run == (None if when == "never" else {"id": 1})
    resumption = Resumption(1, 1_000, 2_000)
    filled(outbox_for("mine", resumption=resumption), [logged(2, 3_000, resumption)])
    assert outbox_for("mine", resumption=resumption).run == (None if when == "never" else {"id": 1})


def test_whether_the_end_was_logged_is_remembered_until_the_training_goes_on(outbox_for):
    outbox, places = filled(outbox_for("mine"))
    outbox.settle(places[-1])
    assert outbox_for("mine").ended
    resumption = Resumption(1, 1_000, 2_000)
    assert not outbox_for("mine", resumption=resumption).ended
    filled(outbox_for("mine", resumption=resumption), [logged(2, 3_000, resumption)])
    assert not outbox_for("mine", resumption=resumption).ended


def test_what_another_process_writes_is_not_touched(outbox_for, folder, tmp_path):
    program = """
import sys
from pathlib import Path
from accmt.tracking.outbox import Outbox
from accmt.tracking.segment import Recipient
from accmt.tracking.tracker import Logged
outbox = Outbox(Path(sys.argv[1]), Recipient("mine", "training-1", "elsewhere", "experiment", {}, {}, 0))
outbox.add(Logged({"loss": 1.0}, 1, 1))
print("ready", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", program, str(folder.parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        outbox = outbox_for("mine")
        [path] = folder.iterdir()
        assert read(outbox) == []
        assert outbox.problems == [f"{path} is in use"]
        assert outboxes_in(folder.parent) == ([], [f"{path} is in use"])
        filled(outbox, [logged(2, 2)])
        outbox.remove()
        assert list(folder.iterdir()) == [path]
        process.communicate()
    assert [entry.step for entry in read(outbox_for("mine"))] == [1]


texts = st.text(st.characters(exclude_categories=[]), max_size=20)
whole = st.integers(0, 2**53)
entries = (
    st.builds(Logged, st.dictionaries(texts, st.floats(allow_nan=False), min_size=1), st.integers(), whole)
    | st.builds(lambda name, *rest: File(Path("/", name.replace("\0", "")), *rest), texts, st.booleans(), whole)
    | st.builds(Ended, st.sampled_from(["FINISHED", "FAILED", "KILLED"]), whole)
)


@given(entries)
def test_entries_come_back_as_they_were(entry):
    line = to_line(entry)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert from_data(json.loads(line), None) == entry


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["add", "settle", "read", "reopen"]), st.integers(0, 100))))
def test_whatever_is_done_nothing_is_lost_or_doubled(tmp_path_factory, actions):
    """Compared with a list."""
    folder = tmp_path_factory.mktemp("outbox")
    recipient = Recipient("mine", "1", "elsewhere", "experiment", {}, {}, 0)
    outbox, waiting, taken, number = Outbox(folder, recipient), [], [], 0
    for action, size in actions:
        if action == "add":
            for _ in range(size):
                number += 1
                outbox.add(logged(number, number))
                waiting.append(number)
        elif action == "read":
            taken += outbox.read()
        elif action == "settle" and taken:
            count = 1 + size % len(taken)
            outbox.settle(taken[count - 1][1])
            del taken[:count], waiting[:count]
        elif action == "reopen":
            outbox.release()
            outbox, taken = Outbox(folder, recipient), []
        assert outbox.left().values == len(waiting)
    assert [entry.step for entry, _ in taken] + [entry.step for entry in read(outbox)] == waiting
    outbox.remove()
    assert not list(folder.iterdir())


def test_a_file_is_as_documented(outbox_for, folder):
    """The page and the module show lines; these are they."""
    outbox = outbox_for("mine")
    place = outbox.add(Logged({"train_loss": 0.5}, 12, 1_764_000_000_000))
    outbox.settle(place)
    outbox.begun("4567")
    [path] = folder.iterdir()
    header, *lines = path.read_text().splitlines()
    assert Header.from_line(header.encode()) == Header(outbox.recipient)
    assert lines == [
        '{"time": 1764000000000, "step": 12, "values": {"train_loss": 0.5}}',
        json.dumps({"sent": len(header) + 1 + len(lines[0]) + 1}),
        '{"run": "4567"}',
    ]
    outbox.release()
    segment = Segment.open(path)
    assert segment.run == "4567"
    segment.close()
    segment.close()
    assert os.listdir(folder) == [path.name]

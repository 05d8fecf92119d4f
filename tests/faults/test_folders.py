"""Folders with other things in them

The folder of a training contains other files and folders, with names of every kind; the clock is wrong; a second
training is started in the same folder; the folder itself has an unusual name. It has **survived** if the training is
killed, resumes, and ends bit by bit as an undisturbed one, with all other files unchanged; and if a second training is
refused as long as the first one lives, and accepted as soon as that was killed, even while the processes that loaded
its data still exist (a *hit*).
"""

import os
import socket
import time

import pytest
from injected import STARTED
from trials import tree

NO_TEXT = b"\xff\xfe no text"
NAMES = [
    b"notes.txt",
    b"~",
    b".hidden",
    b"%s%n{0}",
    b"checkpoint-9999",
    b"checkpoint-9-step-1",
    b"checkpoint-0009-step-1.bak",
    b"checkpoint-0009-step-1 ",
    b"Checkpoint-0009-step-1",
    "checkpoint-٠٠٠٩-step-١".encode(),
    b"checkpoint-0009-step--1",
    b"latest",
    b"best_other",
    b"evaluation-1-step-1",
    b"MANIFEST.json",
    b"saving.json.bak",
    b"earlier-",
    b"earlier-x",
    b".old-",
    b".tmpx",
    b".trash",
    b"-rf",
    b"x" * 255,
    b"two\nlines",
    "ä ö ü 漢字 \U0001f600".encode(),
    NO_TEXT,
]


def make_file(path):
    with open(path, "wb") as file:
        file.write(b"mine")


def make_folder(path):
    os.mkdir(path)
    make_file(path + b"/mine")


def make_link(path):
    os.symlink(b"/", path)


def make_loop(path):
    os.symlink(os.path.basename(path), path)


def make_socket(path):
    here = os.getcwd()
    os.chdir(os.path.dirname(path))  # the name of a socket has to be short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.path.basename(path)[:100])
    finally:
        os.chdir(here)


KINDS = [make_file, make_folder, make_link, make_loop, os.mkfifo, make_socket]


def foreign(folder):
    """What is there that a training did not write, by its names as bytes."""
    found = {}
    for path in (os.fsencode(folder), os.fsencode(folder / "checkpoints"), os.fsencode(folder / "best_age")):
        for name in os.listdir(path):
            if name in NAMES or name[:100] in {known[:100] for known in NAMES}:
                status = os.lstat(os.path.join(path, name))
                found[path, name] = (status.st_ino, status.st_mode, status.st_mtime_ns)
    return found


def test_files_of_others(tally, trial):
    whole = trial()
    expected, operations = whole.finish({"kind": "count"}), whole.operations()
    for attempt in tally("files of others in the folders of a training", small=6, full=60):
        with attempt:
            killed = trial()
            (killed.path / "best_age").mkdir(parents=True)
            killed.checkpoints.mkdir()
            for folder in (killed.path, killed.checkpoints, killed.path / "best_age"):
                for name in attempt.chance.sample(NAMES, 6):
                    attempt.chance.choice(KINDS)(os.path.join(os.fsencode(folder), name))
            before, at = foreign(killed.path), attempt.chance.randint(30, operations)
            attempt.plan = f"{[name for _, name in before]}, killed before operation {at}"
            assert len(before) == 18
            assert killed.start({"kind": "die", "at": at}).end() == -9
            ended = killed.finish()
            savings = {name: digest for name, digest in ended["savings"].items() if name in expected["savings"]}
            assert {**ended, "savings": savings} == expected
            assert foreign(killed.path) == before
            killed.clear()


def test_a_clock_that_is_wrong(tally, cut_short, expected):
    for attempt in tally("times of files at random, and a clock that runs back", small=3, full=40):
        with attempt:
            killed = cut_short()
            for path in sorted(killed.path.rglob("*"), reverse=True):
                stamp = attempt.chance.choice([0, 1, 2e9, 4e9, 1e10]) + attempt.chance.random()
                os.utime(path, (stamp, stamp))
            assert killed.finish({"kind": "clock"}) == expected
            killed.clear()


@pytest.mark.parametrize("workers", [0, 2])
def test_two_trainings(tally, trial, workers):
    options = {"dataloader_num_workers": workers}
    expected = trial(**options).finish()
    case = f"a second training, with {workers} processes that load data"
    for attempt in tally(case, small=2, full=30, hits=0.9 if workers else None):
        with attempt:
            tried = trial(**options)
            step, mark = attempt.chance.randint(2, 5), tried.folder / "paused"
            attempt.plan = f"while step {step} is made"
            first = tried.start({"kind": "pause", "step": step, "mark": str(mark)})
            while not mark.exists() and first.is_running():
                time.sleep(0.01)
            before = tree(tried.path)
            second = tried.start()
            assert second.end() == 1
            assert f"another training uses {tried.path} (process {first.pid} on " in second.printed()
            assert "): wait for it, or give another model_path" in second.printed()
            assert tree(tried.path) == before
            first.kill()
            assert first.end() == -9
            if len(first.group()) >= workers > 0:  # those of evaluations live on, too
                attempt.hit()
            assert tried.finish() == expected
            first.clear()
            tried.clear()


def test_the_name_of_the_folder(tally, trial):
    whole = trial(safe_serialization=True)
    expected, operations = whole.finish({"kind": "count"}), whole.operations()
    names = [name for name in NAMES if name not in (b"~", b".hidden")]
    for attempt in tally("an unusual name of the folder of a training", small=4, full=len(names)):
        with attempt:
            killed = trial(safe_serialization=True)
            name = names[-1 - attempt.number]
            killed.path = killed.folder / os.fsdecode(name)
            killed.checkpoints = killed.path / "checkpoints"
            at = attempt.chance.randint(30, operations)
            attempt.plan = f"{name!r}, killed before operation {at}"
            first = killed.start({"kind": "die", "at": at})
            if name == NO_TEXT:
                assert first.end() == 1
                assert "cannot be written: its name is not valid text, and what is written there" in first.printed()
                assert STARTED not in first.printed()
                continue
            assert first.end() == -9
            assert killed.finish() == expected
            killed.clear()

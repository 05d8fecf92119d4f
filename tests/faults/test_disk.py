"""Disks that fail

During some steps of a training the disk is full, or calls that write, flush or rename fail as on a broken disk. It has
**survived** a step at which a checkpoint or a model could not be written if it continues with a warning, the previous
checkpoint stays, and it ends bit by bit as an undisturbed one. If two checkpoints in a row cannot be written, it has
survived if it ends with an error and, started again when the disk works, ends in the same way. If its folder cannot be
written from the beginning, it must say so before the first step.
"""

import json
import re
import shutil
import subprocess

import pytest
from injected import STARTED
from trials import broken, tree

CODES = ["EIO", "ENOSPC", "EDQUOT"]
# The last one is what torch says.
FULL = re.compile(r"\[Errno 28\] |\(os error 28\)|unexpected pos")
# The last step of the training.
LAST = 6
SAME = ("weights", "files", "history", "decisions", "savings", "best")


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", folder]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def unchangeable(tmp_path):
    """Makes folders so that nothing can be added to them or removed, or gives that back."""

    def change(on, folders):
        for folder in folders:
            subprocess.run(["chattr", "+i" if on else "-i", folder], check=True, capture_output=True)

    try:
        change(True, [tmp_path])
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"folders cannot be made unchangeable here: {error}")
    change(False, [tmp_path])
    yield change
    subprocess.run(["chattr", "-R", "-i", tmp_path], capture_output=True)


def same(ended, expected, but=()):
    for part in SAME:
        assert part in but or ended[part] == expected[part], f"{part} is not that of an undisturbed training"


def check_journals(trial):
    """Whole lines, each of them JSON."""
    for name in ("history.jsonl", "decisions.jsonl"):
        path = trial.path / name
        text = path.read_text() if path.exists() else ""
        assert text == "" or text.endswith("\n"), f"{name} ends in the middle of a line"
        for line in text.splitlines():
            json.loads(line)


def failing(attempt, below, **more):
    calls = ["write", "manifest", "fsync", "rename", "mkdir"]
    fault = {
        "kind": "fail",
        "call": calls[attempt.number % len(calls)],
        "code": attempt.chance.choice(CODES),
        "below": below,
        "lasts": attempt.chance.random() < 0.7,
    }
    most = {"write": 2, "manifest": 1, "fsync": 6, "rename": 1, "mkdir": 1}
    fault["first"] = attempt.chance.randrange(most[fault["call"]]) if fault["lasts"] else 0
    fault |= more
    attempt.plan = ", ".join(f"{name} {value}" for name, value in fault.items())
    return fault


@pytest.mark.parametrize("how", ["at once", "in the background"])
def test_a_checkpoint_cannot_be_written(tally, trial, how):
    expected = trial().finish()
    case = f"a checkpoint cannot be written {how}"
    for attempt in tally(case, small=5, full=100, hits=0.9):
        with attempt:
            tried = trial(checkpoint_async=how == "in the background")
            step = attempt.chance.randint(1, LAST)
            ended = tried.finish(failing(attempt, rf"\.tmp-checkpoint-\d+-step-{step}-"))
            if f"no checkpoint at step {step}: OSError: " in tried.printed:
                attempt.hit()
                if step == LAST:  # no other one follows: the next start makes it
                    assert tried.there()[-1] == step - 1
                    ended = tried.finish()
            same(ended, expected)
            tried.check()
            assert not tried.left_behind()
            tried.clear()


@pytest.mark.parametrize("how", ["at once", "in the background"])
def test_two_checkpoints_in_a_row_cannot_be_written(tally, trial, how):
    expected = trial(checkpoint_async=how == "in the background").finish()  # a checkpoint holds how it was made
    case = f"two checkpoints in a row cannot be written {how}"
    for attempt in tally(case, small=5, full=50):
        with attempt:
            tried = trial(checkpoint_async=how == "in the background")
            step = attempt.chance.randint(2, 5)
            child = tried.start(failing(attempt, rf"\.tmp-checkpoint-\d+-step-({step}|{step + 1})-"))
            assert child.end() == 1
            assert f"no checkpoint at step {step}: OSError: " in child.printed()
            assert "\naccmt.distributed.collective.Failed: OSError: " in child.printed()
            tried.check()
            assert tried.there()[-1] == step - 1
            assert tried.finish() == expected
            tried.clear()


def test_a_model_cannot_be_saved(tally, trial):
    """The rule goes on as if it had not been. A model that was put in place before the call that failed is whole."""
    expected = trial().finish()
    for attempt in tally("a model cannot be saved", small=5, full=100, hits=0.6):
        with attempt:
            tried = trial()
            step = attempt.chance.choice([2, 4, 6])
            ended = tried.finish(failing(attempt, r"\.tmp-(best|evaluation|index)", steps=[step]))
            if f"could not be saved at step {step}: OSError: " in tried.printed:
                attempt.hit()
            same(ended, expected, but=("decisions", "savings", "best"))
            assert broken(tried.path) == []
            assert not tried.left_behind()
            tried.clear()


def test_a_model_cannot_be_saved_twice_in_a_row(tally, trial):
    expected = trial().finish()
    for attempt in tally("two models in a row cannot be saved", small=3, full=50):
        with attempt:
            tried = trial()
            child = tried.start(failing(attempt, r"\.tmp-(evaluation|index)", steps=[4, 6], first=0, lasts=True))
            assert child.end() == 1
            assert "best_age could not be saved at step 4: OSError: " in child.printed()
            assert "\naccmt.distributed.collective.Failed: OSError: " in child.printed()
            tried.check()
            ended = tried.finish()
            same(ended, expected, but=("decisions", "savings", "best"))
            assert broken(tried.path) == []
            tried.clear()


def test_files_cannot_be_longer_than_a_limit(tally, trial):
    """As a quota of a user has it; the system call fails in the middle of the file."""
    expected = trial(safe_serialization=True).finish()
    for attempt in tally("a file cannot be longer than a limit", small=4, full=60, hits=0.8):
        with attempt:
            tried = trial(safe_serialization=True)
            size, step = attempt.chance.randint(100_000, 1_300_000), attempt.chance.choice([1, 3, 5])
            attempt.plan = f"{size} bytes at step {step}"
            ended = tried.finish({"kind": "limit", "size": size, "steps": [step]})
            if f"no checkpoint at step {step}: " in tried.printed and "File too large" in tried.printed:
                attempt.hit()
            same(ended, expected)
            tried.check()
            assert not tried.left_behind()
            tried.clear()


def test_journals_cannot_be_longer_than_a_limit(tally, trial):
    """A line is there as a whole or not at all, also where a part of it was written; it waits for the next one."""
    expected = trial().finish()
    for attempt in tally("a line of a journal is written in part", small=4, full=60, hits=0.5):
        with attempt:
            tried = trial(quiet=True)
            step, lasts = attempt.chance.choice([2, 4]), attempt.chance.random() < 0.5
            size = attempt.chance.randint(100, 1000) + (1000 if step == 4 else 0)
            attempt.plan = f"{size} bytes {'from' if lasts else 'at'} step {step}"
            child = tried.start({"kind": "limit", "size": size, "steps": [*range(step, 7 if lasts else step + 1)]})
            code = child.end()
            if "waits to be written" in child.printed():
                attempt.hit()
            assert code == 0 or lasts, child.printed()
            check_journals(tried)
            same(tried.finish(), expected, but=("decisions", "savings", "best"))
            tried.check()
            tried.clear()


@pytest.mark.parametrize("how", ["at once", "in the background"])
def test_the_disk_is_full(tally, trial, disk, how):
    """For a while, or until the end of the process."""
    expected = trial().finish()
    case = f"the disk is full, saving {how}"
    for attempt in tally(case, small=6, full=100, hits=0.4):
        with attempt:
            tried = trial(checkpoint_async=how == "in the background")
            tried.path = disk / "model"
            tried.checkpoints = tried.path / "checkpoints"
            leave = attempt.chance.choice([0, attempt.chance.randint(0, 3000), attempt.chance.randint(0, 1_900_000)])
            first = attempt.chance.randint(1, 6)
            last = attempt.chance.choice([first, first, 6])
            attempt.plan = f"{leave} bytes are left from step {first} to step {last}"
            child = tried.start({"kind": "fill", "disk": str(disk), "leave": leave, "steps": [*range(first, last + 1)]})
            code = child.end()
            said = FULL.search(child.printed())
            if said:
                attempt.hit()
            assert code == 0 or said
            tried.check()
            check_journals(tried)
            assert not tried.left_behind()
            (disk / "filler").unlink(missing_ok=True)
            same(tried.finish(), expected, but=("decisions", "savings", "best"))
            tried.check()
            shutil.rmtree(tried.path)
            tried.clear()


@pytest.mark.parametrize("how", ["at once", "in the background"])
def test_nothing_can_be_added_any_more(tally, trial, unchangeable, how):
    """As where a file system was mounted anew, read-only, after an error; files that are open can be written to."""
    expected = trial().finish()
    case = f"nothing can be added any more, saving {how}"
    for attempt in tally(case, small=2, full=30):
        with attempt:
            tried = trial(checkpoint_async=how == "in the background")
            first = attempt.chance.randint(3, 5)
            attempt.plan = f"from step {first} on"
            folders = [str(tried.path), str(tried.checkpoints)]
            child = tried.start({"kind": "unchangeable", "folders": folders, "steps": [*range(first, 7)]})
            code = child.end()
            unchangeable(False, folders)
            assert code == 1
            # In the background the one of the step before is still being written.
            assert re.search(rf"no checkpoint at step ({first - 1}|{first}): PermissionError: ", child.printed())
            tried.check()
            check_journals(tried)
            assert max(tried.there()) in (first - 2, first - 1) if how == "in the background" else (first - 1,)
            ended = tried.finish()
            same(ended, expected, but=("decisions", "savings", "best"))
            tried.check()
            tried.clear()


def make_file(folder):
    (folder / "model").write_text("mine")


def make_file_above(folder):
    (folder / "above").write_text("mine")
    return folder / "above" / "model"


def make_checkpoints_a_file(folder):
    (folder / "model").mkdir()
    (folder / "model" / "checkpoints").write_text("mine")


def make_lock_a_folder(folder):
    (folder / "model" / ".lock").mkdir(parents=True)


def make_lock_a_link(folder):
    (folder / "mine").write_text("mine")
    (folder / "model").mkdir()
    (folder / "model" / ".lock").symlink_to(folder / "mine")


def make_history_a_folder(folder):
    (folder / "model" / "history.jsonl").mkdir(parents=True)


def make_dangling_link(folder):
    (folder / "model").symlink_to(folder / "nowhere" / "model")
    (folder / "nowhere").write_text("mine")


UNUSABLE = [
    make_file,
    make_file_above,
    make_checkpoints_a_file,
    make_lock_a_folder,
    make_lock_a_link,
    make_history_a_folder,
    make_dangling_link,
]


def check_refused(trial, folder, *faults):
    """With an error that names the argument, before the first step, and nothing changed."""
    before = tree(folder)
    child = trial.start(*faults)
    assert child.end() == 1
    assert STARTED not in child.printed()
    said = child.printed().splitlines()[-1]
    assert f"model_path: '{trial.path}' " in said or f"'{trial.path}/history.jsonl'" in said
    assert tree(folder) == before


def test_a_folder_that_cannot_be_used_from_the_beginning(tally, trial):
    for attempt in tally("something else is where the training has to write", small=len(UNUSABLE), full=len(UNUSABLE)):
        with attempt:
            tried = trial()
            make = UNUSABLE[attempt.number]
            attempt.plan = make.__name__
            (tried.folder / "in").mkdir()
            tried.path = make(tried.folder / "in") or tried.folder / "in" / "model"
            check_refused(tried, tried.folder / "in")
            tried.clear()


def forbid_the_folder_above(folder):
    folder.parent.chmod(0o555)


def forbid_the_folder(folder):
    folder.mkdir(mode=0o555)


def forbid_all_but_the_lock(folder):
    folder.mkdir()
    (folder / ".lock").touch()
    folder.chmod(0o555)


def forbid_the_checkpoints(folder):
    (folder / "checkpoints").mkdir(parents=True, mode=0o555)


FORBIDDEN = [
    forbid_the_folder_above,
    forbid_the_folder,
    forbid_all_but_the_lock,
    forbid_the_checkpoints,
]


def test_no_permission_from_the_beginning(tally, trial):
    for attempt in tally("there is no permission to write", small=len(FORBIDDEN), full=len(FORBIDDEN)):
        with attempt:
            tried = trial()
            forbid = FORBIDDEN[attempt.number]
            attempt.plan = forbid.__name__
            tried.path = tried.folder / "above" / "model"
            tried.path.parent.mkdir()
            forbid(tried.path)
            check_refused(tried, tried.path.parent, {"kind": "ordinary user"})
            tried.path.parent.chmod(0o755)
            tried.clear()


def test_a_disk_that_is_read_only_from_the_beginning(tally, trial, disk):
    for attempt in tally("the disk is read-only from the beginning", small=2, full=2):
        with attempt:
            tried = trial()
            tried.path = disk / "model"
            subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
            if attempt.number == 1:
                (tried.path / "checkpoints").mkdir(parents=True)
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
            check_refused(tried, disk)
            tried.clear()

"""The newest checkpoint that can be trusted is found, whatever else lies in the folder."""

import os

import pytest

from accmt.checkpoint import publish
from accmt.checkpoint.checkpoints import Checkpoints, NoCheckpoint


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path)


def add(checkpoints, step):
    target = checkpoints.next(step)
    with publish.publishing(target) as folder:
        (folder / "trainer.json").write_text(str(step))
    return target


def damage(path):
    content = bytearray((path / "trainer.json").read_bytes())
    content[0] ^= 1
    (path / "trainer.json").write_bytes(content)


def names(checkpoints):
    return [checkpoint.path.name for checkpoint in checkpoints.all()]


def test_none_at_all(checkpoints):
    assert checkpoints.all() == []
    assert checkpoints.newest() is None
    assert checkpoints.next(7).name == "checkpoint-0001-step-7"
    with pytest.raises(NoCheckpoint) as caught:
        checkpoints.at(1)
    assert str(caught.value) == f"there is no checkpoint 1 in {checkpoints.folder}; the checkpoints are: none"
    checkpoints.prune(1)


def test_newest_is_by_index_and_not_by_time_or_step_or_text(checkpoints):
    for step in (50, 40, 30):
        add(checkpoints, step)
    os.utime(checkpoints.all()[-1].path, (0, 0))
    (checkpoints.folder / "checkpoint-0003-step-30").rename(checkpoints.folder / "checkpoint-10000-step-5")
    newest = checkpoints.newest()
    assert (newest.index, newest.step) == (10_000, 5)
    assert checkpoints.next(6).name == "checkpoint-10001-step-6"


def test_damaged_newest_is_a_warning_and_the_one_before(checkpoints):
    for step in (10, 20, 30):
        add(checkpoints, step)
    damage(checkpoints.all()[2].path)
    assert checkpoints.newest().step == 20
    assert checkpoints.refused == [
        "checkpoint-0003-step-30 cannot be used: trainer.json is damaged: its content does not match its hash; "
        "continuing from checkpoint-0002-step-20"
    ]
    assert names(checkpoints) == ["checkpoint-0001-step-10", "checkpoint-0002-step-20", "checkpoint-0003-step-30"]
    assert checkpoints.next(25).name == "checkpoint-0004-step-25"


def test_a_damaged_older_one_is_nobodys_business(checkpoints):
    add(checkpoints, 10)
    add(checkpoints, 20)
    damage(checkpoints.all()[0].path)
    assert checkpoints.newest().step == 20
    assert checkpoints.refused == []


def test_all_damaged_is_an_error_that_lists_each_with_its_reason(checkpoints):
    add(checkpoints, 10)
    add(checkpoints, 20)
    damage(checkpoints.all()[0].path)
    (checkpoints.all()[1].path / "trainer.json").unlink()
    with pytest.raises(NoCheckpoint) as caught:
        checkpoints.newest()
    assert str(caught.value) == (
        f"no checkpoint in {checkpoints.folder} can be used:\n"
        f"  checkpoint-0002-step-20 cannot be used: trainer.json is missing\n"
        f"  checkpoint-0001-step-10 cannot be used: trainer.json is damaged: its content does not match its hash\n"
        f"Nothing was changed. Start from scratch with resume=False, or with another model_path."
    )


def test_by_index(checkpoints):
    for step in (10, 20):
        add(checkpoints, step)
    assert checkpoints.at(1).step == 10
    with pytest.raises(NoCheckpoint) as caught:
        checkpoints.at(3)
    assert str(caught.value) == f"there is no checkpoint 3 in {checkpoints.folder}; the checkpoints are: 1, 2"
    path = checkpoints.all()[0].path
    damage(path)
    with pytest.raises(NoCheckpoint) as caught:
        checkpoints.at(1)
    assert str(caught.value) == f"{path} cannot be used: trainer.json is damaged: its content does not match its hash"


@pytest.mark.parametrize(("keep", "left"), [(None, 5), (1, 1), (2, 2), (9, 5), (0, 1)])
def test_prune_keeps_the_newest(checkpoints, keep, left):
    for step in range(5):
        add(checkpoints, step)
    checkpoints.prune(keep)
    publish.end_threads()
    assert [checkpoint.index for checkpoint in checkpoints.all()] == [1, 2, 3, 4, 5][-left:]
    assert not [path for path in checkpoints.folder.iterdir() if path.name.startswith(".")]


def test_prune_counts_complete_ones_and_leaves_damaged_ones(checkpoints):
    for step in range(4):
        add(checkpoints, step)
    (checkpoints.all()[3].path / publish.MANIFEST).unlink()
    (checkpoints.all()[0].path / "trainer.json").write_text("")
    checkpoints.prune(1)
    assert [checkpoint.index for checkpoint in checkpoints.all()] == [1, 3, 4]
    assert checkpoints.newest().index == 3
    assert checkpoints.refused[0].startswith("checkpoint-0004-step-3 cannot be used: it has no MANIFEST.json")


STRAY = [
    "notes.txt",
    ".tmp-checkpoint-0009-step-1-abc",
    ".trash-checkpoint-0009-step-1-abc",
    "checkpoint-9-step-1",
    "checkpoint-0009-step-",
    "checkpoint-0009-step-1.bak",
    "checkpoint-0009-step-1\n",
    "Checkpoint-0009-step-1",
    "checkpoint-٠٠٠٩-step-١",
    "latest",
]


def test_stray_files_are_ignored(checkpoints):
    add(checkpoints, 1)
    for name in STRAY:
        (checkpoints.folder / name).mkdir()
    assert names(checkpoints) == ["checkpoint-0001-step-1"]
    assert checkpoints.newest().index == 1
    checkpoints.prune(1)
    assert all((checkpoints.folder / name).is_dir() for name in STRAY)


@pytest.mark.parametrize("kind", ["file", "link to a complete one"])
def test_what_only_has_the_name_of_a_checkpoint_is_refused(checkpoints, kind):
    good = add(checkpoints, 1)
    false = checkpoints.folder / "checkpoint-0002-step-2"
    false.write_text("") if kind == "file" else false.symlink_to(good)
    assert checkpoints.newest().index == 1
    said = "checkpoint-0002-step-2 cannot be used: it is not a directory; continuing from checkpoint-0001-step-1"
    assert checkpoints.refused == [said]

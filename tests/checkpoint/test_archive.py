"""An earlier training is archived as a whole, also by a process that continues where another one died."""

import os

import pytest

from accmt.checkpoint.archive import JOURNALS, archive_training, move_to_archive


def leave(folder, *names):
    """What a training left: checkpoints, and journals."""
    (folder / "checkpoints" / "checkpoint-0001-step-1").mkdir(parents=True)
    for name in names:
        (folder / name).write_text(name)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_nothing_is_put_aside_where_nothing_was_left(tmp_path):
    assert archive_training(tmp_path, []) is None
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "history.jsonl").write_text("of a training that has not come to a checkpoint")
    assert archive_training(tmp_path, []) is None
    assert names(tmp_path) == ["checkpoints", "history.jsonl"]


def test_what_is_no_checkpoint_is_not_taken_for_an_earlier_training(tmp_path):
    (tmp_path / "checkpoints" / "lost+found").mkdir(parents=True)
    (tmp_path / "checkpoints" / "notes.txt").write_text("mine")
    assert archive_training(tmp_path, []) is None
    assert names(tmp_path / "checkpoints") == ["lost+found", "notes.txt"]


def test_everything_is_moved(tmp_path):
    leave(tmp_path, *JOURNALS)
    (tmp_path / "best").mkdir()
    assert archive_training(tmp_path, [tmp_path / "best"]) == tmp_path / "earlier-1"
    assert names(tmp_path / "earlier-1") == sorted(["best", "checkpoints", *JOURNALS])
    assert names(tmp_path) == ["earlier-1"]


@pytest.mark.parametrize("moved", range(len(JOURNALS) + 2))
def test_a_move_that_was_cut_short_anywhere_is_gone_on_with(tmp_path, monkeypatch, moved):
    """Without saved models, which would tell that something is left."""
    leave(tmp_path, *JOURNALS)
    rename, left = type(tmp_path).rename, [moved]

    def dies(self, target):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return rename(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", dies)
    if moved < len(JOURNALS) + 1:
        with pytest.raises(KeyboardInterrupt):
            archive_training(tmp_path, [])
    else:
        archive_training(tmp_path, [])
    monkeypatch.undo()
    archive_training(tmp_path, [])
    assert not [name for name in names(tmp_path) if not name.startswith("earlier-")]
    assert sorted(path.name for path in tmp_path.glob("earlier-*/*")) == sorted(["checkpoints", *JOURNALS])


def test_journals_of_a_training_without_a_checkpoint_are_not_taken_for_those_of_the_one_before(tmp_path):
    leave(tmp_path, *JOURNALS)
    archive_training(tmp_path, [])
    for name in JOURNALS:
        (tmp_path / name).write_text("begun, and ended before its first checkpoint")
    assert archive_training(tmp_path, []) is None


def test_the_newest_folder_is_that_with_the_highest_number_whatever_the_clock_says(tmp_path):
    """The clock was set back between two starts, the second of which was cut short after the checkpoints."""
    leave(tmp_path, *JOURNALS)
    archive_training(tmp_path, [])
    os.utime(tmp_path / "earlier-1", (4e9, 4e9))
    leave(tmp_path, *JOURNALS)
    move_to_archive(tmp_path, [tmp_path / "checkpoints"])
    assert archive_training(tmp_path, []) == tmp_path / "earlier-3"
    assert names(tmp_path / "earlier-3") == sorted(JOURNALS)


def test_numbers_only_rise(tmp_path):
    """Where folders were deleted by hand, so that the newest one is still the one with the highest number."""
    (tmp_path / "earlier-2").mkdir()
    (tmp_path / "earlier-10").mkdir()
    (tmp_path / "earlier-thoughts").mkdir()
    assert move_to_archive(tmp_path, []) == tmp_path / "earlier-11"

"""Files that are damaged

A training was killed after its fourth checkpoint. Then its files are damaged: bits are flipped, files are truncated,
emptied, removed, added, exchanged, or replaced by links and directories. It has **survived** damage to its newest
checkpoint if the previous one is used, with a warning that gives the reason, the damaged files are left as they are,
and the training ends bit by bit as an undisturbed one. If every checkpoint is damaged, it has survived if it refuses to
start, with the reason for each, and changes nothing. With damaged journals or saved models it must still resume and
reach the same weights.
"""

import json
import os
import shutil

import pytest
from trials import tree

MANIFEST = "MANIFEST.json"
NEWEST = "checkpoint-0004-step-4"


def flip(path, chance):
    """Flip one bit."""
    content = bytearray(path.read_bytes())
    place = chance.randrange(len(content) * 8)
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)
    return f"bit {place} of {path.name} flipped"


def cut_off(path, chance):
    size = chance.randrange(1, path.stat().st_size)
    os.truncate(path, size)
    return f"{path.name} cut off after {size} bytes"


def empty(path, chance):
    os.truncate(path, 0)
    return f"{path.name} emptied"


def lengthen(path, chance):
    with path.open("ab") as file:
        file.write(chance.randbytes(chance.randint(1, 5000)))
    return f"something appended to {path.name}"


def remove(path, chance):
    path.unlink()
    return f"{path.name} removed"


def clear_block(path, chance):
    """As a file system does after a power cut, when a block was never written."""
    content = bytearray(path.read_bytes())
    place = chance.randrange(len(content))
    content[place : place + 4096] = b"\0" * len(content[place : place + 4096])
    path.write_bytes(content)
    return f"zeros in {path.name} from {place} on"


def add(path, chance):
    name = chance.choice(["optimizer.bin", "custom_checkpoint_0.pkl", ".hidden", "a\nb", "ü \udcff", "-rf"])
    (path.parent / name).write_bytes(b"x")
    return f"{name!r} added"


def exchange(path, chance):
    """With the file of this name in the checkpoint before, where that is another one."""
    other = path.parents[1] / "checkpoint-0003-step-3" / path.name
    if other.read_bytes() == path.read_bytes():
        return flip(path, chance)
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    return f"{path.name} of the checkpoint before instead of its own" if content else ""


def replace_by_link(path, chance):
    elsewhere = path.parents[3] / path.name
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)
    return f"{path.name} moved, and a link to it left"


def replace_by_directory(path, chance):
    path.unlink()
    path.mkdir()
    return f"a directory instead of {path.name}"


def replace_by_pipe(path, chance):
    path.unlink()
    os.mkfifo(path)
    return f"a pipe instead of {path.name}"


def replace_all_by_file(path, chance):
    shutil.rmtree(path.parent)
    path.parent.write_bytes(b"x")
    return "a file instead of the checkpoint"


def replace_all_by_link(path, chance):
    shutil.rmtree(path.parent)
    path.parent.symlink_to("checkpoint-0003-step-3")
    return "a link to the checkpoint before instead of the checkpoint"


DAMAGES = [
    cut_off,
    empty,
    lengthen,
    remove,
    clear_block,
    add,
    exchange,
    replace_by_link,
    replace_by_directory,
    replace_by_pipe,
    replace_all_by_file,
    replace_all_by_link,
]


def says_the_same(manifest, original):
    """Whether a manifest lists the same files: a flipped bit in a blank or in the version changes nothing of that."""
    try:
        return json.loads(manifest.read_text())["files"] == json.loads(original)["files"]
    except (ValueError, KeyError, TypeError):
        return False


def check_passed_over(trial, expected):
    """The newest checkpoint is passed over, and left as it is."""
    damaged = trial.checkpoints / NEWEST
    before = tree(damaged) if damaged.is_dir() else damaged.read_bytes()
    ended = trial.finish()
    assert f"{NEWEST} cannot be used: " in trial.printed
    assert "; continuing from checkpoint-0003-step-3" in trial.printed
    # The damaged one is still there, so that the next ones have higher numbers.
    assert ended == {**expected, "newest": "checkpoint-0007-step-6"}
    assert before == (tree(damaged) if damaged.is_dir() else damaged.read_bytes())


def test_one_flipped_bit(tally, cut_short, expected):
    for attempt in tally("a flipped bit in a file of the newest checkpoint", small=9, full=200):
        with attempt:
            trial = cut_short()
            files = sorted((trial.checkpoints / NEWEST).iterdir())
            file = files[attempt.number % len(files)]
            original = file.read_text() if file.name == MANIFEST else ""
            attempt.plan = flip(file, attempt.chance)
            if file.name == MANIFEST and says_the_same(file, original):
                assert trial.finish() == expected
            else:
                check_passed_over(trial, expected)
            trial.clear()


def test_each_damage_to_each_file(tally, cut_short, expected):
    for attempt in tally("another damage to a file of the newest checkpoint", small=12, full=72):
        with attempt:
            trial = cut_short()
            files = sorted((trial.checkpoints / NEWEST).iterdir())
            damage = DAMAGES[attempt.number % len(DAMAGES)]
            attempt.plan = damage(files[attempt.number // len(DAMAGES) % len(files)], attempt.chance)
            check_passed_over(trial, expected)
            trial.clear()


def test_every_checkpoint_is_damaged(tally, cut_short):
    for attempt in tally("damage to every checkpoint", small=4, full=50):
        with attempt:
            trial = cut_short()
            names = sorted(path.name for path in trial.checkpoints.iterdir())
            plans = []
            for name in names:
                damage = attempt.chance.choice([flip, *DAMAGES])
                file = attempt.chance.choice(["model.safetensors", "optimizer.safetensors", "rng-0.safetensors"])
                plans.append(damage(trial.checkpoints / name / file, attempt.chance))
            attempt.plan = "; ".join(plans)
            before = tree(trial.path)
            child = trial.start()
            assert child.end() == 1
            printed = child.printed()
            assert f"no checkpoint in {trial.checkpoints} can be used:\n" in printed
            for name in names:
                assert f"\n  {name} cannot be used: " in printed
            assert tree(trial.path) == before
            trial.clear()


def check_goes_on(trial, expected):
    """With the same weights and the same rest of the training."""
    ended = trial.finish()
    for part in ("weights", "files", "newest"):
        assert ended[part] == expected[part]


@pytest.mark.parametrize("name", ["history.jsonl", "decisions.jsonl", "training.json", "run.json", "log.jsonl"])
def test_a_journal_is_damaged(tally, cut_short, expected, name):
    for attempt in tally(f"damage to {name}", small=6, full=60):
        with attempt:
            trial = cut_short()
            damage = [flip, flip, cut_off, empty, remove, clear_block][attempt.number % 6]
            attempt.plan = damage(trial.path / name, attempt.chance)
            check_goes_on(trial, expected)
            trial.clear()


def test_a_saved_model_is_damaged(tally, cut_short, expected):
    for attempt in tally("damage to a saved model", small=6, full=120):
        with attempt:
            trial = cut_short()
            files = [path for path in sorted(trial.path.glob("best_*/**/*")) if path.is_file()]
            damage = [flip, flip, cut_off, empty, remove, clear_block][attempt.number % 6]
            attempt.plan = damage(files[attempt.number // 6 % len(files)], attempt.chance)
            check_goes_on(trial, expected)
            trial.clear()

"""`accmt checkpoints`: what lies there, what of it can be trusted, and what a resume makes of it."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from accmt import set_seed
from accmt.checkpoint.checkpoints import SCHEMA, Checkpoints, NoCheckpoint
from accmt.cli.checkpoints.report import age_in_words

COMMAND = Path(sys.executable).with_name("accmt")
PAGE = (Path(__file__).parent.parent.parent / "docs" / "reference" / "command-line.md").read_text()
FIRST, SECOND, THIRD = (f"checkpoint-000{number}-step-{100 * number}" for number in (1, 2, 3))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


TABLES = """\
checkpoint                step  epoch  age    size  state
checkpoint-0001-step-100   100   0.66  3 h  2.4 kB  complete
checkpoint-0002-step-200   200   1.33  2 h  2.4 kB  complete
checkpoint-0003-step-300   300      2  1 h  2.4 kB  complete  <- resume

saved model                             values  step  epoch    size  state
best_accuracy@dev                        0.875   300      2  1.4 kB  complete
best_f1@dev__f1@ood              0.123457, 0.5   300      2  1.4 kB  complete
lowest (best_valid_loss keep 2)
  evaluation-0002-step-300                 0.8   300      2  1.4 kB  complete
  evaluation-0001-step-150                 0.9   150      1  1.4 kB  complete

a resume continues from checkpoint-0003-step-300, unless its contents turn out to be damaged
no training is running here
total size: BYTES bytes (checkpoints 7.1 kB, saved models 5.7 kB)
complete: all files are there, with the right sizes; use --verify to check their contents as well
"""


def without_sizes(out):
    return re.sub(r"[\d,]+ bytes \(", "BYTES bytes (", out)


def test_all_is_well(look, folder):
    status, out, err = look(folder)
    assert (status, without_sizes(out), err) == (0, TABLES, "")
    files = [path for path in folder.rglob("*") if path.is_file() and len(path.relative_to(folder).parts) > 1]
    size = sum(path.stat().st_size for path in files if path.name != "index.json")
    assert f"total size: {size:,} bytes (" in out


def test_all_is_verified(look, folder):
    status, out, _ = look(folder, "--verify")
    shown = TABLES.replace(TABLES.splitlines(keepends=True)[-1], "")
    assert (status, without_sizes(out)) == (
        0,
        shown.replace("complete", "verified").replace(", unless its contents turn out to be damaged", ""),
    )


def test_the_command_itself(folder):
    ran = subprocess.run([COMMAND, "checkpoints", folder], capture_output=True, text=True, check=False)
    assert (ran.returncode, without_sizes(ran.stdout), ran.stderr) == (0, TABLES, "")
    assert subprocess.run([COMMAND, "checkpoints"], capture_output=True, check=False).returncode == 2
    assert subprocess.run([COMMAND, "checkpoints", folder, "x"], capture_output=True, check=False).returncode == 2
    program = f"import sys; from accmt.cli.main import main; main(['checkpoints', {str(folder)!r}, '--verify']); "
    program += "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0


def test_nothing_is_written(look, folder):
    def state():
        return {path: (path.lstat().st_mtime_ns, path.lstat().st_ino) for path in [folder, *folder.rglob("*")]}

    before = state()
    assert look(folder, "--verify")[0] == 0
    assert state() == before


def _cut(path):
    os.truncate(path / "model.safetensors", 5)


def _pipe(path):
    (path / "trainer.json").unlink()
    os.mkfifo(path / "trainer.json")


def _link_to_itself(path):
    path.rename(path.with_name("real"))
    path.symlink_to("real")


def _link_in_it(path):
    (path / "model.safetensors").rename(path.parent / "model")
    (path / "model.safetensors").symlink_to("../model")


def _file(path):
    shutil.rmtree(path)
    path.touch()


MANIFEST = "damaged: its MANIFEST.json cannot be read:"
DAMAGE = {
    "damaged: model.safetensors has 5 bytes instead of 2,000": _cut,
    "damaged: model.safetensors is missing": lambda path: (path / "model.safetensors").unlink(),
    "damaged: more does not belong to it": lambda path: (path / "more").touch(),
    "damaged: trainer.json is not a regular file": _pipe,
    "damaged: model.safetensors is not a regular file": _link_in_it,
    "damaged: it has no MANIFEST.json": lambda path: (path / "MANIFEST.json").unlink(),
    "damaged: its MANIFEST.json cannot be read: Expecting value: line 1 column 1 (char 0)": lambda path: (
        path / "MANIFEST.json"
    ).write_text("x"),
    "damaged: its MANIFEST.json cannot be read: schema is missing": lambda path: (path / "MANIFEST.json").write_text(
        "{}"
    ),
    "damaged: its MANIFEST.json cannot be read: it is nested too deeply": lambda path: (
        path / "MANIFEST.json"
    ).write_text("[" * 10**5),
    "damaged: it is not a directory": _file,
    "damaged: it is not a directory ": _link_to_itself,
}


@pytest.mark.parametrize("said", DAMAGE)
def test_damaged_checkpoints_are_skipped(look, folder, said):
    DAMAGE[said](folder / "checkpoints" / THIRD)
    status, out, err = look(folder)
    lines = [line.rstrip() for line in out.splitlines()]
    assert (status, err) == (1, "")
    assert next(line for line in lines if line.startswith(THIRD)).endswith(f"  {said.rstrip()}")
    assert next(line for line in lines if line.startswith(SECOND)).endswith("complete  <- resume")
    assert f"a resume continues from {SECOND}, unless its contents turn out to be damaged" in lines
    assert "damaged: a resume skips such a checkpoint, and it stays until you delete it" in lines


def test_only_reading_finds_a_changed_byte(look, folder):
    flip(folder / "checkpoints" / THIRD / "model.safetensors")
    flip(folder / "best_accuracy@dev" / "pytorch_model.bin")
    assert look(folder)[0] == 0
    status, out, _ = look(folder, "--verify")
    assert status == 1
    assert "damaged: model.safetensors is damaged: its content does not match its hash\n" in out
    assert "damaged: pytorch_model.bin is damaged: its content does not match its hash\n" in out
    assert f"a resume continues from {SECOND}\n" in out


@pytest.mark.parametrize("damaged", [(), (3,), (2, 3), (1, 2, 3), (1,), (2,)])
def test_the_marked_one_is_the_one_that_a_resume_takes(look, folder, damaged):
    for number in damaged:
        flip(folder / "checkpoints" / f"checkpoint-000{number}-step-{number}00" / "model.safetensors")
    marked = re.findall(r"^(\S+).*<- resume$", look(folder, "--verify")[1], re.MULTILINE)
    checkpoints = Checkpoints(folder)
    try:
        taken = [checkpoints.newest().path.name]
    except NoCheckpoint:
        taken = []
    assert marked == taken
    assert len(checkpoints.refused) == (len(damaged) if damaged[-1:] == (3,) and taken else 0)


def test_none_can_be_used(look, folder):
    for name in (FIRST, SECOND, THIRD):
        _cut(folder / "checkpoints" / name)
    status, out, _ = look(folder)
    way_out = "start from scratch with resume=False, or use another model_path"
    said = f"no checkpoint can be used, so a resume is refused: {way_out}\n"
    assert status == 1
    assert said in out
    assert "<- resume" not in out


def test_a_newer_format(look, folder, put):
    put.checkpoint(folder, 4, schema=SCHEMA + 1)
    status, out, _ = look(folder)
    why = f"it was written by a newer accmt (schema {SCHEMA + 1}): update accmt to resume from it"
    assert status == 1
    assert f"  too new: {why}\n" in out
    assert (
        f"a resume chooses checkpoint-0004-step-400, the newest, and is refused: {why}; "
        f"resume=3 continues from an older one\n"
    ) in out
    assert "<- resume" not in out


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"position": {}}, "position.epoch is missing"),
        ({"position": []}, "position: [] is not an object"),
        ({"position": {"epoch": -1, "step_in_epoch": 0}}, "position.epoch: -1 is not a count"),
        ({"schema": "1"}, "schema: '1' is not a count"),
        ({"schema": True}, "schema: True is not a count"),
        ({"steps_per_epoch": float("inf")}, "Infinity is not JSON"),
    ],
)
def test_an_odd_trainer_json(look, folder, changes, why, put):
    put.checkpoint(folder, 4, **changes)
    status, out, _ = look(folder)
    assert status == 1
    assert f"damaged: its trainer.json cannot be read: {why}\n" in out


@pytest.mark.parametrize(
    ("steps", "length", "shown"),
    [(0, None, "1"), (7, None, "1+7"), (149, 150, "1.99"), (7, 0, "1+7"), (9, 7, "1+9"), (1, 3, "1.33")],
)
def test_epochs(look, folder, steps, length, shown, put):
    put.checkpoint(folder, 4, position={"epoch": 1, "step_in_epoch": steps}, steps_per_epoch=length)
    assert re.search(rf"^checkpoint-0004-step-400 +400 +{re.escape(shown)}  +5 min", look(folder)[1], re.MULTILINE)


@pytest.mark.parametrize(
    ("age", "shown"),
    [
        (0.5, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (3600, "1 h"),
        (172799, "47 h"),
        (172800, "2 days"),
    ],
)
def test_ages(age, shown):
    assert age_in_words(age) == shown


def test_a_clock_that_was_set_back(look, folder, put):
    put.checkpoint(folder, 4, age=-3600)
    assert re.search(r"^checkpoint-0004-step-400 +400 +2.66 +future +2", look(folder)[1], re.MULTILINE)


def test_savings_of_a_rule_that_keeps_several(look, folder, put):
    put.saving(folder / "lowest" / put.kept(3), "lowest", "best_valid_loss keep 2", {"valid_loss": float("nan")}, 3)
    shutil.rmtree(folder / "lowest" / put.kept(1))
    (folder / "lowest" / "my notes").mkdir()
    status, out, _ = look(folder)
    assert status == 1
    lines = out.split("lowest (best_valid_loss keep 2)\n")[1].splitlines()
    assert [re.sub(r" +", " ", line) for line in lines[:3]] == [
        " evaluation-0002-step-300 0.8 300 2 1.4 kB complete",
        " evaluation-0001-step-150 0 bytes missing: index.json lists it, but it does not exist",
        " evaluation-0003-step-450 1.4 kB damaged: its saving.json cannot be read: NaN is not JSON",
    ]


def test_a_model_that_the_list_does_not_name(look, folder, put):
    put.saving(folder / "lowest" / put.kept(3), "lowest", "best_valid_loss keep 2", {"valid_loss": "inf"}, 3)
    status, out, _ = look(folder, "--verify")
    assert status == 0
    assert re.search(r"^  evaluation-0003-step-450 +inf +450 +3 +1.4 kB  not listed$", out, re.MULTILINE)
    assert "not listed: the training ended while it saved this model; the next save of the rule deletes it\n" in out
    (folder / "lowest" / "index.json").unlink()
    assert look(folder)[1].count("not listed\n") == 3


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "Expecting value: line 1 column 1 (char 0)"),
        ("[]", "[] is not an object"),
        ('{"schema": 1, "best_first": 1}', "best_first: 1 is not of type list"),
        ('{"schema": 1, "best_first": [1]}', "best_first.0: 1 is not of type str"),
        ('{"schema": 1, "best_first": ["../best_accuracy@dev"]}', "a name in it is not that of a saved model"),
    ],
)
def test_a_damaged_list_of_models(look, folder, content, why):
    (folder / "lowest" / "index.json").write_text(content)
    status, out, _ = look(folder)
    assert status == 1
    assert re.search(r"keep 2\)\n  evaluation-0001-step-150 .* complete\n  evaluation-0002-step-300 .* complete\n", out)
    assert f"\nlowest/index.json cannot be read: {why}\n" in out


def test_a_saving_without_its_description(look, folder):
    (folder / "best_accuracy@dev" / "saving.json").unlink()
    status, out, _ = look(folder)
    assert status == 1
    assert re.search(r"^best_accuracy@dev  +1.3 kB +damaged: saving.json is missing$", out, re.MULTILINE)


def test_what_else_lies_there(look, folder):
    for name in (".tmp-checkpoint-0004-step-400-0123abcd", ".trash-0123abcd", "checkpoint-3-step-1", "x"):
        (folder / "checkpoints" / name).mkdir()
    (folder / "checkpoints" / "x" / "file").write_text("12345")
    for name in (".old-best_accuracy@dev-0123abcd", ".old-gone-0123abcd", "earlier-1", "earlier-2", "earlier-x"):
        (folder / name).mkdir()
    shutil.copytree(folder / "checkpoints" / FIRST, folder / "earlier-1" / "checkpoints" / FIRST)
    shutil.copytree(folder / "lowest", folder / "earlier-1" / "lowest")
    shutil.copytree(folder / "checkpoints" / FIRST, folder / "earlier-2" / FIRST)
    (folder / "first save" / ".tmp-evaluation-0001-step-1-0123abcd").mkdir(parents=True)
    (folder / "logs" / ".tmp-of another program").mkdir(parents=True)
    status, out, _ = look(folder)
    assert status == 0
    shown = out.split("also there")[1].split("\n\n")[0].splitlines()[1:]
    assert [re.sub(r" {2,}", "  ", line) for line in shown] == [
        "earlier-1  5.3 kB  an earlier training: 1 checkpoint, saved models of 1 rule",
        "earlier-2  2.4 kB  an earlier training: 1 checkpoint",
        "checkpoints/.tmp-checkpoint-0004-step-400-0123abcd  0 bytes  half-written: the next training deletes it",
        "checkpoints/.trash-0123abcd  0 bytes  half-deleted: the next training deletes it",
        ".old-best_accuracy@dev-0123abcd  0 bytes  replaced: the next training deletes it",
        ".old-gone-0123abcd  0 bytes  the next training renames it to gone",
        "first save/.tmp-evaluation-0001-step-1-0123abcd  0 bytes  half-written: the next training deletes it",
        "checkpoints/checkpoint-3-step-1  0 bytes  not the name of a checkpoint: trainings ignore it",
        "checkpoints/x  5 bytes  not the name of a checkpoint: trainings ignore it",
    ]
    assert ", earlier trainings 7.7 kB, other 5 bytes)\n" in out


def test_a_damaged_file_that_was_moved_aside_is_no_earlier_training(look, folder):
    (folder / "earlier-1").mkdir()
    (folder / "earlier-1" / "run.json").write_text("{")
    out = look(folder)[1]
    assert re.search(r"(?m)^earlier-1 +1 byte[s]? +not a training, only what was moved aside: run.json$", out)
    (folder / "earlier-1" / "training.json").write_text("{}")
    assert re.search(
        r"(?m)^earlier-1 +\d bytes +an earlier training: no checkpoints, no saved models$", look(folder)[1]
    )


def test_many_other_things_are_counted(look, folder):
    for number in range(50):
        (folder / "checkpoints" / f"note-{number}").touch()
    out = look(folder)[1]
    assert out.count("trainings ignore it") == 20
    assert "\nand 30 more\n" in out


def test_no_checkpoints_yet(look, tmp_path):
    (tmp_path / ".lock").touch()
    said = "there is no checkpoint: a training here starts from scratch\n"
    assert look(tmp_path) == (0, said + "no training is running here\ntotal size: 0 bytes\n", "")


def test_no_training(look, folder, tmp_path, put):
    def error(*path):
        status, out, err = look(Path(*path))
        assert (status, out) == (1, "")
        return err

    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    runs = folder.parent
    assert error(tmp_path, "no") == f"{tmp_path}/no: there is no such folder\n"
    assert error(folder, "history.jsonl") == (
        f"{folder}/history.jsonl is a file: give the model_path of a training, a folder\n"
    )
    not_one = "is not the folder of a training"
    assert error(tmp_path, "empty") == f"{tmp_path}/empty {not_one}: it is empty; give a training's model_path\n"
    assert error(tmp_path) == (
        f"{tmp_path} {not_one}: it has no checkpoints, no saved models and no history; give a training's model_path\n"
    )
    assert error(runs) == f"{runs} {not_one}, but these folders in it are: model\n"
    for below in ("checkpoints", f"checkpoints/{FIRST}", "best_accuracy@dev", f"lowest/{put.kept(1)}"):
        assert error(folder, below) == f"{folder}/{below} belongs to a training: give its model_path, {folder}\n"
    assert error(tmp_path, "loop") == f"{tmp_path}/loop cannot be read: Too many levels of symbolic links\n"
    assert error(tmp_path, "\x1b]0;x\x07") == f"{tmp_path}/\\x1b]0;x\\x07: there is no such folder\n"


def test_a_file_or_nothing_in_the_place_of_the_checkpoints(look, folder):
    checkpoints = folder / "checkpoints"
    checkpoints.rename(folder / "away")
    checkpoints.touch()
    status, out, _ = look(folder)
    assert status == 1
    assert "\ncheckpoints cannot be used: Not a directory\n" in out
    checkpoints.unlink()
    checkpoints.symlink_to("gone")
    status, out, _ = look(folder)
    assert status == 1
    assert "\ncheckpoints cannot be used: it is a link, with which no training can start\n" in out
    checkpoints.unlink()
    checkpoints.symlink_to("away")
    status, out, _ = look(folder)
    assert status == 1
    assert "\ncheckpoints cannot be used: it is a link, with which no training can start\n" in out
    checkpoints.unlink()
    (folder / "away").rename(checkpoints)
    (folder.parent / "link").symlink_to(folder)
    assert without_sizes(look(folder.parent / "link")[1]) == TABLES


def test_for_scripts(look, folder):
    (folder / "earlier-1").mkdir()
    flip(folder / "checkpoints" / THIRD / "model.safetensors")
    status, out, _ = look(folder, "--json", "--verify")
    entries = [json.loads(line) for line in out.splitlines()]
    assert status == 1
    assert [entry["kind"] for entry in entries] == ["checkpoint"] * 3 + ["saving"] * 4 + ["earlier", "training"]
    third = entries[2]
    size = sum(path.stat().st_size for path in (folder / "checkpoints" / THIRD).iterdir())
    assert abs(time.time() - 3700 - third.pop("written")) < 600
    assert third == {
        "kind": "checkpoint",
        "path": str(folder / "checkpoints" / THIRD),
        "bytes": size,
        "state": "damaged",
        "problem": "model.safetensors is damaged: its content does not match its hash",
        "index": 3,
        "step": 300,
        "epoch": {"completed": 2, "steps": 0, "length": 150},
        "resumed": False,
    }
    assert [entry["resumed"] for entry in entries[:3]] == [False, True, False]
    assert [entry["rank"] for entry in entries[3:7]] == [1, 1, 1, 2]
    assert entries[4]["about"] == {
        "rule": "best_f1@dev/f1@ood",
        "text": "best_f1@dev/f1@ood",
        "values": {"f1@dev": 0.123456789, "f1@ood": 0.5},
        "step": 300,
        "epoch": 2,
        "evaluation": 2,
    }
    assert entries[7] == {
        "kind": "earlier",
        "path": str(folder / "earlier-1"),
        "bytes": 0,
        "problem": None,
        "about": "an earlier training: no checkpoints, no saved models",
    }
    total = sum(entry["bytes"] for entry in entries[:-1])
    whole = {"kind": "training", "path": str(folder), "bytes": total, "well": False}
    assert entries[-1] == {**whole, "running": False, "process": None}


def test_a_real_training(look, trainer, regression, data, error_metric, tmp_path):
    set_seed(0)
    training = trainer(
        multiple_checkpoints=True,
        checkpoint_every="3 steps",
        metrics=error_metric(),
        quiet=True,
        disable_model_saving=False,
    )
    training.register_model_saving("best_error keep 2")
    training.fit(regression(), data(16), data(8))
    status, out, _ = look(tmp_path / "model", "--verify")
    assert status == 0
    rows = re.findall(r"^checkpoint-(\S+) +(\d+) +(\S+) .* verified(?:  (<- resume))?$", out, re.MULTILINE)
    assert rows == [
        ("0001-step-3", "3", "0.75", ""),
        ("0002-step-6", "6", "1.50", ""),
        ("0003-step-8", "8", "2", "<- resume"),
    ]
    best = training.best("best_error")
    assert re.search(
        rf"keep 2\)\n  {best.folder.name} +{best.values['error']:.6g} +{best.step} +{best.epoch} .*verified\n", out
    )


def test_the_example_of_the_page(look, folder):
    shown = re.search(r"```text\n\$ accmt checkpoints runs/model\n(.*?)```", PAGE, re.DOTALL)[1]
    _cut(folder / "checkpoints" / SECOND)
    shutil.copytree(folder / "checkpoints" / FIRST, folder / "earlier-1" / "checkpoints" / FIRST)
    out = look(folder)[1]
    assert shown == out

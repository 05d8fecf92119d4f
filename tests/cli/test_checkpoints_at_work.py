"""`accmt checkpoints` beside a training at work, before hostile names, narrow terminals, and without rights."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from accmt.checkpoint import publish
from accmt.checkpoint.checkpoints import SCHEMA
from accmt.checkpoint.lock import Lock

COMMAND = Path(sys.executable).with_name("accmt")
FIRST, SECOND, THIRD = (f"checkpoint-000{number}-step-{100 * number}" for number in (1, 2, 3))
HOLDS = "import sys; from accmt.checkpoint.lock import Lock; Lock(__import__('pathlib').Path(sys.argv[1])).acquire()"


def test_a_training_at_work(look, folder):
    (folder / "checkpoints" / ".tmp-checkpoint-0004-step-400-0123abcd").mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", f"{HOLDS}; print('held', flush=True); input()", folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        status, out, _ = look(folder)
        with pytest.raises(RuntimeError, match="another training uses"):
            Lock(folder).acquire()
        holder.stdin.write("\n")
    assert (status, holder.returncode) == (0, 0)
    assert f"a training is running here: process {holder.pid}\n" in out
    assert "  in use: the running training is writing or deleting it\n" in out
    assert "no training is running here\n" in look(folder)[1]


def test_a_training_of_this_process_keeps_its_lock(look, folder):
    lock = Lock(folder)
    lock.acquire()
    try:
        assert f"a training is running here: process {os.getpid()}\n" in look(folder)[1]
        other = subprocess.run([sys.executable, "-c", HOLDS, folder], capture_output=True, text=True, check=False)
    finally:
        lock.release()
    assert "another training uses" in other.stderr


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to(path)])
def test_a_lock_that_is_no_file(look, folder, make):
    (folder / ".lock").unlink()
    make(folder / ".lock")
    status, out, _ = look(folder)
    assert status == 0
    assert "a training is running here\n" not in out


def test_hostile_texts_are_not_printed_raw(look, folder, put):
    evil = "\x1b[2J\x07\u202eevil\n"
    for place in (folder / "checkpoints" / evil, folder / "checkpoints" / os.fsdecode(b"\xff\xfe")):
        place.touch()
    (folder / "checkpoints" / SECOND / evil).touch()
    put.saving(folder / f"best{evil}", evil, f"{evil} keep 1", {evil: 0.5}, 1)
    status, out, err = look(folder)
    assert (status, err) == (1, "")
    assert {char for char in out if not char.isprintable()} == {"\n"}
    assert out.count("\\x1b[2J\\x07\\u202eevil\\n") == 4
    assert "checkpoints/\\udcff\\udcfe" in out
    status, out, _ = look(folder, "--json")
    assert status == 1
    assert out.isascii()
    assert {char for char in out if not char.isprintable()} == {"\n"}
    assert folder / "checkpoints" / evil in [Path(json.loads(line)["path"]) for line in out.splitlines()]


def test_a_terminal_that_knows_few_signs(folder, put):
    put.saving(folder / "best_größe", "größe", "größe", {"größe": 0.5}, 1)
    ran = subprocess.run(
        [COMMAND, "checkpoints", folder],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert b"best_gr\\xf6\\xdfe (gr\\xf6\\xdfe)" in ran.stdout


def test_a_checkpoint_that_is_removed_while_it_is_looked_at(look, folder, monkeypatch):
    problem_of = publish.folder_problem

    def pruned(path, *, read):
        if path.name == FIRST:
            publish.remove(path)
        return problem_of(path, read=read)

    monkeypatch.setattr(publish, "folder_problem", pruned)
    status, out, _ = look(folder)
    assert status == 0
    assert FIRST not in out
    assert out.count("complete\n") == 5


def test_models_that_are_replaced_while_they_are_looked_at(look, folder, monkeypatch, put):
    problem_of, done = publish.folder_problem, []

    def replaced(path, *, read):
        if path.name in ("best_accuracy@dev", put.kept(1)) and path not in done:
            done.append(path)
            if path.name == put.kept(1):
                put.saving(folder / "lowest" / put.kept(3), "lowest", "best_valid_loss keep 2", {"valid_loss": 0.1}, 3)
                (folder / "lowest" / "new").write_text(
                    json.dumps({"schema": 1, "best_first": [put.kept(3), put.kept(2)]})
                )
                os.replace(folder / "lowest" / "new", folder / "lowest" / "index.json")
                publish.remove(path)
            else:
                put.saving(path, "best_accuracy@dev", "best_accuracy@dev", {"accuracy@dev": 0.99}, 3)
                return "it was half one and half the other"
        return problem_of(path, read=read)

    monkeypatch.setattr(publish, "folder_problem", replaced)
    status, out, _ = look(folder)
    assert (status, len(done)) == (0, 2)
    assert re.search(r"^best_accuracy@dev +0.99 +450 +3 .*complete$", out, re.MULTILINE)
    assert re.search(r"^  evaluation-0003-step-450 +0.1 .*\n  evaluation-0002-step-300 .*\n\n", out, re.MULTILINE)


def test_whoever_reads_may_stop_reading(folder):
    for number in range(3000):
        (folder / "checkpoints" / f"checkpoint-{number:04d}-step-0").touch()
    looked = subprocess.Popen(
        [COMMAND, "checkpoints", folder, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert b'"kind": "checkpoint"' in looked.stdout.readline()
    looked.stdout.close()
    assert looked.stderr.read() == b""
    looked.stderr.close()
    assert looked.wait() == 1


def test_in_a_terminal_of_80_columns(folder, put):
    os.truncate(folder / "checkpoints" / THIRD / "model.safetensors", 5)
    (folder / "checkpoints" / ".tmp-checkpoint-0004-step-400-0123abcd").mkdir()
    put.checkpoint(folder, 4, schema=SCHEMA + 1)
    main_end, terminal = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm", "NO_COLOR": "1"}
    ran = subprocess.Popen(
        [COMMAND, "checkpoints", folder, "--verify"], stdout=terminal, stderr=terminal, stdin=terminal, env=environment
    )
    os.close(terminal)
    shown = b""
    with ran, os.fdopen(main_end, "rb", buffering=0) as file:
        try:
            while piece := file.read(4096):
                shown += piece
        except OSError:  # the other end is closed
            pass
    told, out = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).replace("\r\n", "\n").rsplit("\r\x1b[K", 1)
    assert ran.returncode == 1
    assert f"\r\x1b[Kreading {FIRST}" in told
    assert max(map(len, out.splitlines())) <= 80
    lines = out.splitlines()
    [third] = [number for number, line in enumerate(lines) if line.startswith(THIRD)]
    cell = " ".join(line[lines[0].index("state") :].strip() for line in lines[third : third + 4])
    assert cell.startswith("damaged: model.safetensors has 5 bytes instead of 2,000 too new: ")
    assert re.search(r"^best_f1@dev__f1@ood +0.123457, 0.5 +300 +2 +1.4 kB  verified$", out, re.MULTILINE)
    assert "-0123abcd" in out.split("also there")[1]


@pytest.fixture
def guarded(folder):
    """The same training where all may look, and whose user has no rights beyond those that the modes give."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        path = Path(shutil.copytree(folder, Path(place, "model")))
        yield path
        for each in [path, *path.rglob("*")]:
            if each.is_dir():
                each.chmod(0o755)


@pytest.fixture
def unprivileged():
    """An action -> its result, done by a user who is not root."""

    def act(action):
        if os.geteuid():
            return action()
        try:
            os.seteuid(65534)
        except PermissionError:
            pytest.skip("root cannot be left here, and root may read everything")
        try:
            return action()
        finally:
            os.seteuid(0)

    return act


@pytest.mark.parametrize(
    ("name", "mode", "said"),
    [
        (
            "checkpoints",
            0,
            "\ncheckpoints cannot be used: Permission denied\ncannot tell which checkpoint a resume continues from: ",
        ),
        (
            "checkpoints",
            0o444,
            f"{THIRD}   300              0 bytes  unreadable: you have no permission to read all of it\n",
        ),
        (f"checkpoints/{THIRD}", 0, "unreadable: you have no permission to read all of it\n"),
        (f"checkpoints/{THIRD}/trainer.json", 0, "unreadable: you have no permission to read all of it\n"),
        ("lowest", 0, "\nlowest cannot be read: Permission denied\n"),
        ("best_accuracy@dev", 0o444, "unreadable: you have no permission to read all of it\n"),
        ("lowest/index.json", 0, "\nlowest/index.json cannot be read: Permission denied\n"),
    ],
)
def test_what_may_not_be_read(look, guarded, unprivileged, name, mode, said):
    look(guarded)  # what is imported is imported by a user who may
    (guarded / name).chmod(mode)
    status, out, _ = unprivileged(lambda: look(guarded))
    assert status == 1
    assert said in out
    is_known = not name.startswith("checkpoints")
    assert ("<- resume" in out) == is_known
    assert ("cannot tell which checkpoint a resume continues from: not all of them can be read\n" in out) != is_known


def test_a_folder_that_may_only_be_listed_or_only_entered(look, guarded, unprivileged):
    look(guarded)
    for mode in (0, 0o111, 0o444):
        guarded.chmod(mode)
        assert unprivileged(lambda: look(guarded)) == (1, "", f"{guarded} cannot be read: Permission denied\n")


def test_a_folder_that_may_not_be_written(look, guarded, unprivileged):
    expected = look(guarded, "--verify")
    for path in [*guarded.rglob("*"), guarded]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert unprivileged(lambda: look(guarded, "--verify")) == expected
    (guarded / ".lock").chmod(0)
    status, out, _ = unprivileged(lambda: look(guarded))
    assert status == 0
    assert "cannot tell whether a training is running here: .lock cannot be read: Permission denied\n" in out

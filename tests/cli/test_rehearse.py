"""`accmt rehearse`: the script itself is started three times, and its training rehearsed instead of made."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ACCMT = Path(sys.executable).with_name("accmt")
TRAINING = Path(__file__).parent.parent / "rehearsal" / "training.py"
RUNS = [
    "rehearsal 1/3: a short training from scratch",
    "rehearsal 2/3: the training resumed from its first checkpoint, and killed",
    "rehearsal 3/3: the training resumed again, and compared with the first run",
]

pytestmark = pytest.mark.xdist_group("processes")


@pytest.fixture
def start(tmp_path):
    """Arguments of `accmt rehearse` -> its process; what it left in its folder for temporary files is `temporary`."""
    (tmp_path / "temporary").mkdir()
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "TMPDIR": str(tmp_path / "temporary")}

    def run(*arguments):
        command = [ACCMT, "rehearse", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes)

    return run


@pytest.fixture
def rehearse(start, tmp_path):
    """Arguments of `accmt rehearse` -> its status, and what it wrote."""

    def run(*arguments):
        process = start(*arguments)
        out, err = process.communicate()
        assert not list((tmp_path / "temporary").glob("accmt-*"))
        return process.returncode, out, err

    return run


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "trained"
    path.mkdir()
    return path


def test_the_fit_of_a_script(rehearse, folder):
    status, out, err = rehearse(TRAINING, "fits", folder)
    assert (status, err.splitlines()) == (0, RUNS), err
    assert out.splitlines()[-1] == "resume after SIGKILL: exact, bit by bit"
    assert list(folder.iterdir()) == []


ALONE = """
import os
from accmt.rehearsal.runs import Role
if os.environ["RANK"] != "0":
    del Role.findings  # the main process may be writing them
"""


def test_two_processes(rehearse, folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(ALONE + TRAINING.read_text())
    status, out, err = rehearse("launch", "--cpu", "-N", "2", script, "fits", folder)
    assert (status, err.splitlines()) == (0, RUNS), err
    assert out.splitlines()[-1] == "resume after SIGKILL: exact, bit by bit"
    assert list(folder.iterdir()) == []


def test_a_training_that_does_not_resume_exactly(rehearse, folder):
    """The script calls `rehearse` itself, and is rehearsed there."""
    status, out, err = rehearse(TRAINING, "drifts", folder)
    assert (status, err.splitlines()) == (1, RUNS), err
    assert "resume after SIGKILL: NOT exact:\n  batches-0.json: step 7, batch 7 of its epoch.data is '" in out
    assert list(folder.iterdir()) == []


def test_a_script_that_does_not_train(rehearse, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("print('nothing to do')")
    said = [f"{RUNS[0].partition(': ')[2]}: the process ended without a training. Its output:", "nothing to do"]
    assert rehearse(script) == (1, "", "\n".join([RUNS[0], *said, ""]))


def test_a_script_that_fails(rehearse, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys; sys.exit(f'wrong arguments: {sys.argv[1:]}')")
    said = [f"{RUNS[0].partition(': ')[2]}: the process ended with status 1. Its output:", "wrong arguments: ['--a']"]
    assert rehearse(script, "--a") == (1, "", "\n".join([RUNS[0], *said, ""]))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_all_and_deletes_everything(start, tmp_path, number, status):
    script, begun = tmp_path / "script.py", tmp_path / "begun"
    script.write_text(f"import os, time\nopen({str(begun)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)")
    process = start(script)
    while not (begun.exists() and begun.read_text()):
        assert process.poll() is None
    process.send_signal(number)
    process.communicate()
    assert process.returncode == status
    assert not psutil.pid_exists(int(begun.read_text()))
    assert not list((tmp_path / "temporary").glob("accmt-*"))


def test_a_script_that_does_not_exist(rehearse):
    status, out, err = rehearse("launch", "--cpu", "train.py")
    assert (status, out) == (1, "")
    assert "there is no script train.py (the current folder is " in err

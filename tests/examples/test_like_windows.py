"""Trainings where Python has only what it has on Windows; see tests/support/like_windows.py."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="this is Windows")

ROOT = Path(__file__).parents[2]
COMMAND = "import sys\n\nfrom accmt.cli.main import main\n\nsys.exit(main())\n"


def run(folder, script, *arguments):
    command = [sys.executable, ROOT / "tests" / "support" / "like_windows.py", script, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_it_trains_and_resumes_and_the_commands_read_it(tmp_path):
    example = ROOT / "examples" / "digits.py"
    for epochs, end in (
        (2, "the training is complete, after 76 steps"),
        (3, "the training is complete, after 114 steps"),
    ):
        ran = run(tmp_path, example, "--epochs", epochs)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.endswith(f"{end}\n")
    assert "continuing from checkpoint-0002-step-76" in ran.stdout
    (tmp_path / "command.py").write_text(COMMAND)
    for arguments, said in (
        (("explain", "runs/digits"), "no rule asked to stop"),
        (("checkpoints", "--verify", "runs/digits"), "no training is running here"),
    ):
        ran = run(tmp_path, "command.py", *arguments)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert said in ran.stdout


def test_what_it_cannot_do_is_refused(tmp_path):
    (tmp_path / "command.py").write_text(COMMAND)
    (tmp_path / "train.py").write_text("raise AssertionError('it was started')\n")
    for arguments, said in (
        (("rehearse", "train.py"), "a rehearsal kills the training by SIGKILL, which Windows does not have\n"),
        (
            ("launch", "--cpu", "-N", "2", "train.py"),
            "accmt launch passes on signals that Windows does not have: start several processes by torchrun\n",
        ),
    ):
        ran = run(tmp_path, "command.py", *arguments)
        assert ran.returncode == 1
        assert ran.stderr == said

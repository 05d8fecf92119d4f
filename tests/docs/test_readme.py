"""The README's programs and commands run as they stand, its rules are rules, and its files exist."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from page_runner import agrees

from accmt.rules import parse_saving

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
SHOWN = re.search(r"It prints, in a file or a log:\n\n```\n(.*?)```", README, re.DOTALL)
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"^accmt (?:check|explain|replay) .*$", README, re.MULTILINE)


def test_programs_and_commands(tmp_path):
    """Each program goes on where the one before it ended, and the commands are about what they have trained."""
    path = tmp_path / "program.py"
    path.write_text("".join(PROGRAMS))
    ran = subprocess.run([sys.executable, path], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    folder = tmp_path / "runs/quickstart/best_accuracy@dev"
    values = json.loads((folder / "saving.json").read_text())["values"]
    # The program is not seeded: by chance it would be right in one of ten.
    assert values.keys() == {"accuracy@dev"}
    assert min(values.values()) > 0.6
    assert SHOWN is not None
    assert agrees(f"{SHOWN[1]}...", ran.stdout), ran.stdout
    assert (folder / "pytorch_model.bin").is_file()
    assert (tmp_path / "runs/sets/best_accuracy@dev__accuracy@dark/pytorch_model.bin").is_file()
    assert (tmp_path / "runs/loop/best_accuracy/saving.json").is_file()
    assert len(COMMANDS) == 3
    found = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in COMMANDS:
        ran = subprocess.run(command, shell=True, cwd=tmp_path, env=found, capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stderr) == (0, ""), command


def test_rules_are_sentences_of_the_language():
    [block] = re.findall(r"```rule\n(.*?)```", README, re.DOTALL)
    rules = [line.partition("  #")[0].strip() for line in block.splitlines()]
    assert len(rules) >= 2
    for rule in rules:
        assert parse_saving(rule).name == "best_accuracy"


def test_it_is_short():
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("name", ["README.md", "llms.txt", "SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md"])
def test_linked_files_exist(name):
    for target in re.findall(r"\]\((?!http)([^)#]+)", (ROOT / name).read_text()):
        assert (ROOT / target).exists(), target


def test_the_quickstart_is_short():
    lines = [line for line in PROGRAMS[0].splitlines() if line.strip()]
    assert len(lines) <= 20

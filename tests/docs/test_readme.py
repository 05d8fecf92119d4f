"""The README's programs run as they stand, and what it says of the rules is true."""

import json
import re
import subprocess
import sys
from pathlib import Path

from accmt.rules import parse_saving

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
SHOWN = re.search(r"It prints, in a file or a log:\n\n```\n(.*?)```", README, re.DOTALL)
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_programs(tmp_path):
    """Each goes on where the one before it ended."""
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
    expected = _without_numbers(SHOWN[1])
    assert _without_numbers(ran.stdout)[: len(expected)] == expected
    assert (folder / "pytorch_model.bin").is_file()


def _without_numbers(text):
    """The lines of an output but for numbers and the evaluations at which something was saved: both are by chance."""
    lines = [line for line in text.splitlines() if not line.startswith("  ")]
    return [re.sub("[▁-█]+", "▁", re.sub(r"\d[\d,.]*\d|\d", "0", line)) for line in lines]


def test_rules_of_the_table_are_sentences_of_the_language():
    table = README.split("| written |")[1].split("\n\n")[0]
    rules = [rule for row in table.splitlines()[2:] for rule in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(rules) >= 7
    for rule in rules:
        assert parse_saving(rule).name.startswith("best_")


def test_linked_files_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_quickstart_is_short():
    lines = [line for line in PROGRAMS[0].splitlines() if line.strip()]
    assert len(lines) <= 20

"""The page of rules in the Trainer of transformers: its scripts run, and differ in five lines."""

import difflib
import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent.parent / "docs" / "how-to" / "integrations-transformers.md").read_text()
BEFORE, AFTER = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("script", [BEFORE, AFTER], ids=["before", "after"])
def test_its_scripts_run(tmp_path, script):
    pytest.importorskip("transformers", reason="transformers is not installed")
    (tmp_path / "script.py").write_text(f"{script}\nprint(type(model).__name__)")
    ran = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.endswith("ConvNextForImageClassification\n")
    if script is AFTER:
        assert (tmp_path / "runs/digits/model/best_accuracy@clean__accuracy@noisy/model.safetensors").is_file()


def test_at_most_five_lines_are_new():
    lines = difflib.unified_diff(BEFORE.splitlines(), AFTER.splitlines(), lineterm="", n=0)
    new = [line for line in lines if line.startswith("+") and not line.startswith("+++")]
    shortened = "from transformers import ConvNextConfig, ConvNextForImageClassification, Trainer, TrainingArguments"
    assert len([line for line in new if line != f"+{shortened}"]) <= 5


def test_its_session_is_true():
    pytest.importorskip("transformers", reason="transformers is not installed")
    [session] = re.findall(r"```pycon\n(.*?)```", PAGE, re.DOTALL)
    test = doctest.DocTestParser().get_doctest(session, {}, "page", None, 0)
    assert doctest.DocTestRunner().run(test).failed == 0

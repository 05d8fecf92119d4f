"""The page of plain modules: its programs run, one after the other, and print what it says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent.parent / "docs" / "how-to" / "plain-modules.md").read_text()


def test_its_programs_run(tmp_path):
    pytest.importorskip("pandas", reason="pandas is not installed")
    program = tmp_path / "program.py"
    program.write_text("\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)))
    ran = subprocess.run([sys.executable, program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "\nTrainingHistory(5 evaluations, 5 epochs)\n" in ran.stdout
    assert "higher is better for accuracy" in ran.stdout

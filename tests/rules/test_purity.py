"""The rules need nothing but the standard library and lark, and lark only once there is something to parse."""

import subprocess
import sys
from pathlib import Path

import pytest

import accmt.rules

PACKAGE = Path(accmt.rules.__file__).parent
HEAVY = ("torch", "numpy", "accelerate", "transformers", "pydantic")
PROGRAM = """
import sys
import accmt.rules
def loaded(*names): return [name for name in names if name in sys.modules]
print(loaded("lark", "importlib.resources", *{heavy}))
rule = accmt.rules.SavingRule.parse("best_accuracy@dev keep 2 after 1 epoch")
facts = accmt.rules.Facts({{"accuracy": accmt.rules.Reported(("dev",), True)}}, ("dev",))
rules = accmt.rules.Rules((rule,))
accmt.rules.check(rules, facts)
engine = accmt.rules.RuleEngine(rules, facts)
progress = accmt.rules.Progress(20, 2, 0, 1)
print(engine.after_evaluation(accmt.rules.Observation(progress, {{"dev": {{"accuracy": 0.5}}}})).saved[0].rule)
print(loaded(*{heavy}), loaded("lark"))
"""


def test_a_fresh_process_loads_nothing_heavy():
    program = PROGRAM.format(heavy=HEAVY)
    process = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    assert process.stdout.splitlines() == ["[]", "best_accuracy@dev", "[] ['lark']"]


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_no_clock_no_file_no_chance(path):
    text = path.read_text(encoding="utf-8")
    for word in ("import time", "import os", "import random", "import datetime", "from time ", "from os ", "open("):
        assert word not in text

"""The page about selection beyond noise: its tables are what its program prints, and its rules are rules."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from accmt.rules import Facts, Reported, Rules, SavingRule, check, replicated

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "beyond-noise.md").read_text()


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("noise_of_docs", ROOT / "scripts" / "noise.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("table", ["best_of", "luck", "costs"])
def test_tables(program, table):
    assert "\n".join(getattr(program, table)()) in PAGE


def test_rules():
    metrics = {name: Reported(("dev",), True) for name in ("accuracy", "f1")}
    facts = Facts(metrics, ("dev",))
    [block] = re.findall(r"```rule\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines():
        rules = Rules((SavingRule.parse(line.split("#")[0]),))
        assert check(rules, facts) == []
        assert replicated(rules, facts)


def test_picture(program, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    assert program.PICTURE.stat().st_size < 150_000
    monkeypatch.setattr(program, "PICTURE", tmp_path / "picture.png")
    program.draw()
    assert (tmp_path / "picture.png").stat().st_size > 10_000

"""The pages of integrations: their scripts run, and the second has at most five lines more than the first."""

import difflib
import re
from pathlib import Path

import pytest
from launching import launch

from accmt import load_best
from accmt.integrations.loop import Rules

PAGES = Path(__file__).parent.parent.parent / "docs" / "how-to"
BEFORE, AFTER = re.findall(r"```python\n(.*?)```", (PAGES / "loops-by-hand.md").read_text(), re.DOTALL)


def test_five_lines_are_added_to_a_loop_by_hand(tmp_path, monkeypatch):
    changes = [line for line in difflib.ndiff(BEFORE.splitlines(), AFTER.splitlines()) if line[0] in "+-"]
    assert len(changes) == 5
    assert all(line.startswith("+") for line in changes)
    monkeypatch.chdir(tmp_path)
    exec(BEFORE, {})
    names = {}
    exec(AFTER, names)
    assert names["rules"].stop.asked_by == "best_accuracy"
    saved = load_best("runs/by_hand", names["model"])
    assert saved.values["accuracy"] >= names["accuracy"]


def test_the_calls_of_the_page_exist():
    text = (PAGES / "loops-by-hand.md").read_text()
    for name in re.findall(r"`rules\.(\w+)\(", text):
        assert callable(getattr(Rules, name))


def test_the_classes_of_the_table_exist(tmp_path):
    table = re.findall(r"`accmt\.integrations\.(\w+)\.Rules` \| \[(.*?)\]", (PAGES / "integrations.md").read_text())
    program = "import importlib, sys; assert importlib.import_module(f'accmt.integrations.{sys.argv[1]}').Rules"
    for module, page in table:
        assert (PAGES / page).is_file()
        launch(program, module, environment={"KERAS_BACKEND": "torch"}).check()


@pytest.mark.parametrize("host", ["lightning", "ignite", "keras"])
def test_at_most_five_lines_are_new(host):
    before, after, *_ = re.findall(r"```python\n(.*?)```", (PAGES / f"integrations-{host}.md").read_text(), re.DOTALL)
    changes = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    new = [line for line in changes if line.startswith("+") and not line.startswith("+++")]
    shortened = [line for line in new if line.startswith(("+from ignite.engine", "+trainer = pl.T", "+fitted ="))]
    assert len(new) - len(shortened) <= 5

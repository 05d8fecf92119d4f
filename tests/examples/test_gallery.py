"""The scripts of docs/gallery.md, run as a user runs them: briefly, and with --full whole and twice."""

import json
import re
from pathlib import Path

import pytest
from launching import launch
from page_runner import without_numbers

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
SAVED = {
    "augmentation": ("best_accuracy@clean%20then%20valid_loss@clean", "best_worst(accuracy)"),
    "diabetes": ("lowest", "clearly-lower", "average"),
    "distillation": ("teacher/best_accuracy", "student/best_agreement%20then%20valid_loss", "student/best_accuracy"),
    "imbalance": ("best_accuracy", "best_worst_class%20then%20f1"),
    "lora": ("best_worst(accuracy)%20then%20valid_loss",),
    "search": ("best/best_valid_loss@dev", "best/best_accuracy@dev%20then%20valid_loss@dev"),
    "text": ("tweets", "both"),
    "weather": ("best_mae", "best_worst(mae)", "steady"),
}
"""Script -> the folders of the models that it saves even when it trains for one epoch."""
BRIEFLY = {"search": ("--trials", "2"), "text": ("--samples", "32"), "lora": ("--samples", "32")}
FULL = [pytest.param(name, marks=pytest.mark.full) for name in SAVED]


PAGE = (EXAMPLES.parent / "docs" / "gallery.md").read_text()
SHOWN = {
    name: (arguments.split(), output)
    for name, arguments, output in re.findall(
        r"```console\n\$ python examples/(\w+)\.py([^\n]*)\n(.*?)```", PAGE, re.DOTALL
    )
}
"""Script -> its arguments on the page, and what it prints, in parts between `...`."""


def run(name, folder, *arguments):
    given = ("--model-path", folder, *arguments)
    return launch(EXAMPLES / f"{name}.py", *given, environment={"COLUMNS": "200"}).check().stdout


def assert_saved_and_reported(name, folder, printed):
    """The rules have saved what they should, and the page that the script ends with shows them."""
    report = Path(printed.splitlines()[-1].removeprefix("The report: "))
    page = report.read_text()
    for saved in SAVED[name]:
        (description, *_) = sorted((folder / saved).rglob("saving.json"))
        assert json.loads(description.read_text())["rule"] in page or not (folder / saved).is_relative_to(report.parent)


def test_the_page_shows_each_of_them():
    assert SHOWN.keys() == SAVED.keys()


@pytest.mark.parametrize("name", SAVED)
def test_briefly(name, tmp_path):
    printed = run(name, tmp_path / name, "--epochs", "1", *BRIEFLY.get(name, ()))
    assert_saved_and_reported(name, tmp_path / name, printed)


@pytest.mark.parametrize("name", FULL)
def test_whole_and_again(name, tmp_path):
    """The second run finds what the first has left, trains nothing, and reports the same."""
    arguments, shown = SHOWN[name]
    first = run(name, tmp_path / name, *arguments)
    assert_saved_and_reported(name, tmp_path / name, first)
    printed = " ".join(without_numbers(first.replace(str(tmp_path), "runs")).split())
    parts = [" ".join(without_numbers(part).split()) for part in re.split(r"\.\.\.|\n(?!  )", shown)]
    assert re.search(".*".join(map(re.escape, parts)), printed), printed
    second = run(name, tmp_path / name, *arguments)
    assert "nothing was trained" in second
    assert first.splitlines()[-1] == second.splitlines()[-1]

"""`training.json`: what a training was told, read back as it was."""

import json
import math
import os

import pytest

from accmt.files.json_io import DamagedFile
from accmt.rules import CadenceRule, Facts, Length, Reported, Rules, SavingRule, StopCondition
from accmt.tracking.training_file import Description, read_description, write_description

FULL = Description(
    Rules(
        (
            SavingRule.parse("best_accuracy@dev keep 2", patience=3),
            SavingRule.parse('"recall@10"', name="r", saving_below=math.inf, saving_above=-0.5),
        ),
        (StopCondition.parse("valid_loss<0.1"),),
        CadenceRule.parse("500st"),
        CadenceRule.parse("epoch"),
    ),
    Facts(
        {"accuracy": Reported(("dev", "ü"), greater_is_better=True), "recall@10": Reported(("dev",), None)},
        ("dev", "ü"),
        Length(100, 10, None),
    ),
    -1,
)


@pytest.mark.parametrize("description", [FULL, Description(Rules(()), Facts(), None)], ids=["full", "empty"])
def test_read_back_as_it_was(tmp_path, description):
    write_description(tmp_path, description)
    assert read_description(tmp_path) == description


def test_strict_json(tmp_path):
    write_description(tmp_path, FULL)

    def no(constant):
        raise AssertionError(constant)

    read = json.loads((tmp_path / "training.json").read_text(), parse_constant=no)
    assert read["rules"]["save"][1]["saving_below"] == "inf"
    assert read["schema"] == 1


def test_none_there(tmp_path):
    assert read_description(tmp_path) is None


def test_the_former_one_stays_when_writing_fails(tmp_path, monkeypatch):
    write_description(tmp_path, FULL)

    def full(_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_description(tmp_path, Description(Rules(()), Facts(), None))
    monkeypatch.undo()
    assert read_description(tmp_path) == FULL
    assert [path.name for path in tmp_path.iterdir()] == ["training.json"]


FULL_RULES = {"writes": True, "save": [], "stop_when": [], "evaluate_every": None, "checkpoint_every": None}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 2}, " cannot be read: schema: 2 is not 1"),
        ({"length": {"steps": 1}}, " cannot be read: length.total_steps is missing"),
        ({"rules": None}, " cannot be read: rules: None is not an object"),
        ({"metrics": {"a": {}}}, " cannot be read: metrics.a.datasets is missing"),
        (
            {
                "rules": {
                    "writes": True,
                    "save": [],
                    "stop_when": ["a <"],
                    "evaluate_every": None,
                    "checkpoint_every": None,
                }
            },
            " cannot be read: a rule in it is not valid:\nsomething is missing at the end\n",
        ),
    ],
)
def test_damaged(tmp_path, change, said):
    write_description(tmp_path, FULL)
    path = tmp_path / "training.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DamagedFile) as caught:
        read_description(tmp_path)
    assert str(caught.value).startswith(f"{path}{said}")


def test_no_rule_takes_its_name():
    with pytest.raises(ValueError, match="the files of a training have this name"):
        SavingRule.parse("accuracy", name="Training.json")

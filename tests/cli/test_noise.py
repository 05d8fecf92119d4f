"""Rules in standard errors on the command line: replayed and swept over the replicates that a training recorded."""

import json

import pytest

from accmt.cli.main import main
from accmt.rules import Observation, Progress, RecordedReplicates

VALUES = (0.5, 0.52, 0.6, 0.61, 0.59, 0.58)
METRIC = ("--metric", "accuracy:max")


@pytest.fixture
def training(tmp_path):
    """A folder with the journals of a training on one dataset."""
    lines, replicates = [], []
    for number, value in enumerate(VALUES, 1):
        values = tuple(value + 0.02 * (-1) ** (number & r).bit_count() for r in range(8))
        lines.append(Observation(Progress(10 * number, number, 0, number), {"dev": {"accuracy": value}}).to_json())
        replicates.append(RecordedReplicates(number, {"dev": {"accuracy": values}}).to_json())
    for name, entries in (("history", lines), ("replicates", replicates)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return tmp_path


@pytest.fixture
def accmt(capsys):
    """Arguments -> status, stdout, stderr."""

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, [line.rstrip() for line in out.splitlines()], err

    return run


def test_a_replay_says_how_far_apart_models_are(training, accmt):
    status, out, err = accmt("replay", training, "--rule", "accuracy by 2 se", *METRIC, "--patience", "2")
    assert (status, err) == (0, "")
    assert out[2:7] == [
        "         1    10      1  best_accuracy  0.5     saved       0.5 is the first, saved",
        "         2    20      2  best_accuracy  0.52    not better  0.52 beats 0.5 by 0.7 se, not by more than 2 se",
        "         3    30      3  best_accuracy  0.6     saved       0.6 beats 0.5 by 3.3 se, saved",
        "         4    40      4  best_accuracy  0.61    not better  0.61 beats 0.6 by 0.3 se, not by more than 2 se",
        "         5    50      5  best_accuracy  0.59    not better  0.59 is not better than 0.6",
    ]


def test_a_sweep_over_standard_errors(training, accmt):
    rule = ("--rule", "best_accuracy@dev", "--patience", "1", "--by", "0.5se,2se")
    status, out, err = accmt("sweep", training, *rule, *METRIC, "--csv")
    assert (status, err) == (0, "")
    assert [line.split(",")[:5] for line in out[1:]] == [
        ["best_accuracy@dev", "0.5 se", "1", "1", "0.33333333333333337"],
        ["best_accuracy@dev", "0.5 se", "", "0", "0.0"],
        ["best_accuracy@dev", "2 se", "1", "1", "0.6666666666666667"],
        ["best_accuracy@dev", "2 se", "", "0", "0.0"],
    ]


@pytest.mark.parametrize("lines", [None, 4])
def test_a_training_that_did_not_record_replicates_is_refused(training, accmt, lines):
    replicates = training / "replicates.jsonl"
    if lines is None:
        replicates.unlink()
    else:
        replicates.write_text("".join(replicates.read_text().splitlines(keepends=True)[:lines]))
    for command in (("replay", "--rule", "accuracy by 2 se"), ("sweep", "--rule=accuracy", "--patience=1", "--by=2se")):
        status, out, err = accmt(command[0], training, *command[1:], *METRIC)
        assert (status, out) == (1, [])
        assert err.endswith(
            "  only a training with such a rule records its replicates, at every evaluation: write an amount, such as "
            "by 0.01 or by 1%\n"
        )


def test_a_source_without_replicates_is_refused(tmp_path, accmt):
    (tmp_path / "run.csv").write_text("step,epoch,dataset,accuracy\n1,1,dev,0.5\n")
    status, out, err = accmt("replay", tmp_path / "run.csv", "--rule", "accuracy by 2 se", *METRIC)
    assert (status, out) == (1, [])
    assert (
        err
        == f"""\
'2 se' needs the standard error of a difference, which is not known here
    accuracy by 2 se
                ^^^^
  {tmp_path / "run.csv"} has no replicates: write an amount, such as by 0.01 or by 1%
"""
    )


def test_check_puts_it_in_words(accmt):
    status, out, err = accmt("check", "best_accuracy by 2se", "--metric", "accuracy:max")
    assert (status, err) == (0, "")
    assert out[0] == (
        "best_accuracy: saves when accuracy is higher than at its last save, by more than 2 standard errors of the "
        "difference"
    )

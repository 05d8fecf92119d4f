"""`accmt seeds --compare`, on runs that are written without a training; and its intervals, against scipy's."""

import json
import math

import pytest
from scipy import stats

from accmt.cli.main import main
from accmt.cli.seeds.intervals import paired_difference, t_quantile, welch_difference
from accmt.rules import Decision, Facts, Length, Observation, Outcome, Progress, Reported, Rules, SavingRule
from accmt.rules.decision import KeptModel, Verdict
from accmt.tracking.training_file import Description, write_description

RULES = Rules((SavingRule.parse("best_accuracy@dev"),))
FACTS = Facts({"accuracy": Reported(("dev",), True)}, ("dev",), Length(10, 10, 1))
DEV = {"type": "TensorDataset", "length": 12, "samples": "3d"}


def put(folder, seed, value, data=DEV):
    folder.mkdir(parents=True)
    now = Progress(10, 1, 0, 1, 0, 1.0)
    kept = (KeptModel((value,), 1, 10),)
    verdict = Verdict("best_accuracy@dev", (value,), None, Outcome.SAVED, "saved", -1, kept)
    entries = {"history": Observation(now, {"dev": {"accuracy": value}}, 1.0), "decisions": Decision(now, (verdict,))}
    for name, entry in entries.items():
        (folder / f"{name}.jsonl").write_text(json.dumps(entry.to_json()) + "\n")
    write_description(folder, Description(RULES, FACTS, -1))
    (folder / "run.json").write_text(json.dumps({"seed": seed, **({} if data is None else {"data": {"dev": data}})}))


@pytest.fixture
def compare(tmp_path, monkeypatch, capsys):
    """Values by seed of two sets -> the row of the table, and how it was computed."""
    monkeypatch.chdir(tmp_path)

    def run(first, second, data=(DEV, DEV)):
        for name, values, identity in zip("ab", (first, second), data, strict=True):
            for seed, value in values.items():
                put(tmp_path / name / f"seed-{seed}", seed, value, identity)
        assert main(["seeds", "--compare", "a", "b"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split("  ")[0] == "rule"
        assert lines[2:5] == ["", "A: a", "B: b"]
        return " ".join(lines[1].split()), lines[5]

    return run


PAIRED = "paired by seed: both have the same seeds and validation data (Student's t)"


def test_runs_on_the_same_data_are_paired(compare):
    """The difference is small beside the spread over seeds, and beyond noise because it is about the same in each."""
    row, how = compare({0: 0.50, 1: 0.70, 2: 0.90}, {0: 0.48, 1: 0.67, 2: 0.88})
    low, high = stats.ttest_rel((0.50, 0.70, 0.90), (0.48, 0.67, 0.88)).confidence_interval(0.95)
    assert how == PAIRED
    interval = f"{low:+.4g} to {high:+.4g}"
    assert row == f"best_accuracy@dev 3 0.7 0.676667 +0.02333 {interval} accuracy@dev beyond noise"


def test_other_seeds_are_not_paired(compare):
    row, how = compare({0: 0.50, 1: 0.70, 2: 0.90}, {0: 0.48, 1: 0.67, 2: 0.88, 3: 0.6})
    assert how == "not paired (Welch's t): A has the seeds 0, 1, 2, B 0, 1, 2, 3"
    first, second = (0.50, 0.70, 0.90), (0.48, 0.67, 0.88, 0.6)
    low, high = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    interval = f"{low:+.4g} to {high:+.4g}"
    assert row == f"best_accuracy@dev 3 and 4 0.7 0.6575 +0.0425 {interval} accuracy@dev within noise"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ((DEV, {**DEV, "samples": "4e"}), "the validation data differ"),
        ((DEV, None), "it is not known that the validation data are the same (runs of accmt seeds record it)"),
        (
            (DEV, {**DEV, "samples": None}),
            "it is not known that the validation data are the same (runs of accmt seeds record it)",
        ),
    ],
)
def test_other_data_are_not_paired(compare, data, why):
    _, how = compare({0: 0.5, 1: 0.7}, {0: 0.4, 1: 0.6}, data)
    assert how == f"not paired (Welch's t): {why}"


def test_a_single_seed_tells_nothing_of_noise(compare):
    row, how = compare({0: 0.5}, {0: 0.25})
    assert (row, how) == ("best_accuracy@dev 1 0.5 0.25 +0.25 accuracy@dev not known: it takes two seeds", PAIRED)


def test_a_folder_without_runs(tmp_path, capsys):
    assert main(["seeds", "--compare", str(tmp_path), str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"{tmp_path}: no training was found there\n"


@pytest.mark.parametrize("freedom", [1, 1.5, 2, 3, 4.7, 9, 30, 1000])
@pytest.mark.parametrize("probability", [0.9, 0.975])
def test_quantiles_of_student_s_distribution(probability, freedom):
    assert t_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-6)


def test_the_intervals_are_those_of_scipy():
    first, second = [0.3, 0.5, 0.45, 0.61], [0.2, 0.48, 0.47, 0.5]
    for found, other in (
        (paired_difference(first, second), stats.ttest_rel(first, second)),
        (welch_difference(first, second[:3]), stats.ttest_ind(first, second[:3], equal_var=False)),
    ):
        assert (found.low, found.high) == pytest.approx(tuple(other.confidence_interval(0.95)), rel=1e-6)


def test_values_that_are_all_the_same_have_no_noise():
    for difference in (paired_difference, welch_difference):
        found = difference([0.5, 0.5], [0.25, 0.25])
        assert (found.low, found.high, found.is_beyond_noise) == (0.25, 0.25, True)
        assert not difference([0.5, 0.5], [0.5, 0.5]).is_beyond_noise
    assert math.isfinite(t_quantile(0.975, 1))

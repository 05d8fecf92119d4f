"""Trainings that differ only by their seeds are drawn as one band."""

from dataclasses import replace

from accmt.report.charts import charts_of
from accmt.report.page import render
from accmt.report.training import Curve, TrainingReport


def report(seed, values, steps=(10, 20), **settings):
    curves = (Curve("accuracy", "dev", steps, values),)
    given = {"seed": str(seed), "model_path": f"runs/seed-{seed}", "lr": "0.1", **settings}
    return TrainingReport(f"runs/seed-{seed}", "", "Trained", curves=curves, settings=given, end=20)


RUNS = (report(0, (0.5, 0.6)), report(1, (0.7, 0.9)), report(2, (0.6, float("nan"))))


def test_the_mean_lies_in_a_band_from_the_lowest_to_the_highest():
    [chart] = charts_of(RUNS)
    lowest, highest, *runs, mean = chart.data
    assert (lowest["y"], highest["y"]) == ([0.5, 0.6], [0.7, 0.9])
    assert (highest["fill"], "fill" in lowest) == ("tonexty", False)
    assert (mean["x"], mean["y"], mean["name"]) == ([10, 20], [0.6, 0.75], "mean of 3 seeds: dev")
    assert [one["meta"]["run"] for one in runs] == [0, 1, 2]
    assert chart.words == "mean of 3 seeds on dev from 0.6 to 0.75, between 0.6 and 0.75"
    assert "The trainings differ only by their seeds" in render(RUNS)


def test_a_step_of_one_training_is_in_no_band():
    [chart] = charts_of([RUNS[0], report(1, (0.7, 0.9, 0.95), (10, 20, 30))])
    assert chart.data[0]["x"] == [10, 20]


def test_other_trainings_are_drawn_one_by_one():
    same_seed = replace(RUNS[1], settings=RUNS[0].settings)
    for other in (report(1, (0.7, 0.9), lr="0.2"), same_seed):
        [chart] = charts_of([RUNS[0], other])
        assert [trace["meta"]["run"] for trace in chart.data] == [0, 1]
    assert "The trainings differ only by their seeds" not in render([RUNS[0], same_seed])

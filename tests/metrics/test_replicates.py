"""Standard errors from replicates are those that theory, or a bootstrap by scipy of the same resamples, gives."""

import math
import statistics

import numpy as np
import pytest
import scipy.stats
import torch
from torchmetrics import MeanMetric, MetricCollection, classification

from accmt.metrics import FunctionMetric, Metric, TorchMetric
from accmt.metrics.gather import gatherer_of
from accmt.metrics.replicates import Resampling
from accmt.resampling import Draws

CPU = torch.device("cpu")


def replicated(metric, *arguments, count=200, dataset="dev", sizes=64):
    """Return the value of a metric over batches, and what was made of its resamples."""
    names = frozenset(metric.directions)
    resampling = Resampling(Draws(count), dataset, names)
    gatherer = gatherer_of(metric, CPU, None, resampling)
    for batch in zip(*(argument.split(sizes) for argument in arguments), strict=True):
        gatherer.add(batch)
    values = gatherer.values()
    assert resampling.replicates.keys() == names
    return float(values[metric.main_metric]), resampling


def classes(count=300, seed=0):
    """Return two scores per sample, and classes that they say something about."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 2, (count,), generator=generator)
    scores = torch.randn(count, 2, generator=generator)
    scores[:, 1] += targets
    return scores, targets


def is_right(scores, targets):
    return scores.argmax(1) == targets


def test_resamples_are_the_same_everywhere_and_in_all_trainings():
    """Their beginning is written here, as it was drawn once: other ones would not pair with recorded replicates."""
    first = [counts.tolist() for counts in Draws(20).of("dev", 8)]
    assert first[:3] == [[1, 0, 1, 2, 1, 1, 1, 1], [2, 0, 2, 2, 1, 0, 0, 1], [1, 0, 0, 1, 2, 3, 1, 0]]
    assert [counts.tolist() for counts in Draws(20).of("dev", 8)] == first
    assert all(sum(counts) == 8 for counts in first)
    others = [("test", 8, 20), ("dev", 8, 21), ("dev", 9, 20)]
    assert all(next(Draws(count).of(key, n)).tolist() != first[0] for key, n, count in others)


def test_resamples_that_are_too_large_to_keep_are_drawn_again(monkeypatch):
    kept = Draws(20)
    expected = [counts.tolist() for counts in kept.of("dev", 50)]
    monkeypatch.setattr("accmt.resampling._MOST_KEPT", 20 * 49)
    drawn = Draws(20)
    for _ in range(2):
        assert [counts.tolist() for counts in drawn.of("dev", 50)] == expected
    assert [counts.tolist() for counts in kept.of("dev", 50)] == expected


def test_the_standard_error_of_accuracy_is_the_exact_one():
    """Over many datasets: sqrt(p (1 - p) / n) without bias, with the spread that 200 resamples have."""
    metric = FunctionMetric("accuracy", is_right, True, per_sample=True)
    ratios, covered = [], 0
    truth = (1 / 2 + statistics.NormalDist().cdf(math.sqrt(1 / 2))) / 2
    for seed in range(100):
        scores, targets = classes(seed=seed)
        value, resampling = replicated(metric, scores, targets, dataset=str(seed))
        error = statistics.stdev(resampling.replicates["accuracy"])
        ratios.append(error / math.sqrt(value * (1 - value) / len(targets)))
        covered += abs(value - truth) < 2 * error
    assert statistics.mean(ratios) == pytest.approx(1, abs=0.02)
    assert statistics.stdev(ratios) == pytest.approx(1 / math.sqrt(2 * 200), abs=0.015)
    assert 90 <= covered <= 99


def f1(scores, targets):
    guessed = scores.argmax(1)
    return 2 * float((guessed & targets).sum()) / float(guessed.sum() + targets.sum())


def area(scores, targets):
    positive = int(targets.sum())
    ranks = scipy.stats.rankdata(scores[:, 1])[targets.bool().numpy()]
    if positive in (0, len(targets)):
        raise ValueError("only one class")
    return float(ranks.sum() - positive * (positive + 1) / 2) / (positive * (len(targets) - positive))


def correlation(scores, targets):
    return np.corrcoef(scores[:, 1].numpy(), targets.numpy())[0, 1]


def needs_all(scores, targets):
    if len(scores.unique()) < scores.numel():
        raise ValueError("some are missing")
    return 0.5


@pytest.mark.parametrize("statistic", [f1, area, correlation])
def test_the_bootstrap_is_that_of_scipy_with_the_same_resamples(statistic):
    scores, targets = classes()
    value, resampling = replicated(FunctionMetric("x", statistic, True), scores, targets)
    assert value == statistic(scores, targets)
    resamples = [np.repeat(np.arange(len(counts)), counts) for counts in Draws(200).of("dev", len(targets))]

    class Drawn(np.random.Generator):
        """Gives scipy our resamples, one after the other."""

        def integers(self, *limits, size, **kinds):
            return np.stack([resamples.pop(0) for _ in range(size[0])])

    def of_rows(rows):
        return statistic(scores[rows], targets[rows])

    found = scipy.stats.bootstrap(
        (np.arange(len(targets)),),
        of_rows,
        n_resamples=200,
        vectorized=False,
        batch=1,
        rng=Drawn(np.random.PCG64()),
        method="basic",
    )
    assert not resamples
    assert resampling.replicates["x"] == pytest.approx(found.bootstrap_distribution, rel=1e-5)
    assert statistics.stdev(resampling.replicates["x"]) == pytest.approx(found.standard_error, rel=1e-4)


@pytest.mark.parametrize("sizes", [300, 64, 7])
def test_all_kinds_of_metrics_have_the_same_replicates_of_the_same_value(sizes):
    """Those of a score per sample, of all arguments, and of torchmetrics, whatever the batches are."""
    scores, targets = classes()
    whole = MetricCollection({"accuracy": classification.MulticlassAccuracy(2, average="micro")})
    kinds = [
        FunctionMetric("accuracy", is_right, True, per_sample=True),
        FunctionMetric("accuracy", lambda s, t: (is_right(s, t), torch.ones(len(t))), True, per_sample=True),
        FunctionMetric("accuracy", lambda s, t: is_right(s, t).double().mean(), True),
        FunctionMetric("accuracy", lambda s, t: is_right(s["scores"], t).double().mean(), True),
        TorchMetric("accuracy", classification.MulticlassAccuracy(2, average="micro")),
        TorchMetric("all", whole, greater_is_better=True, main_metric="accuracy"),
    ]
    found = []
    for place, metric in enumerate(kinds):
        resampling = Resampling(Draws(20), "dev", frozenset(["accuracy"]))
        gatherer = gatherer_of(metric, CPU, None, resampling)
        for s, t in zip(scores.split(sizes), targets.split(sizes), strict=True):
            gatherer.add(({"scores": s} if place == 3 else s, t))
        assert float(gatherer.values()["accuracy"]) == pytest.approx(is_right(scores, targets).double().mean().item())
        found.append(resampling.replicates["accuracy"])
    assert all(each == pytest.approx(found[0], rel=1e-5) for each in found)
    assert found[0] == found[1] == found[2] == found[3]
    assert len(set(found[0])) > 5


def test_a_mean_over_parts_is_resampled_by_samples():
    sums, parts = torch.tensor([3.0, 0.0, 1.0, 8.0]), torch.tensor([4, 0, 1, 8])
    metric = FunctionMetric("x", lambda s, p: (s, p), True, per_sample=True)
    _, resampling = replicated(metric, sums, parts, count=50)
    for counts, value in zip(Draws(50).of("dev", 4), resampling.replicates["x"], strict=True):
        whole = float((torch.from_numpy(counts) * parts).sum())
        expected = float((torch.from_numpy(counts) * sums).sum()) / whole if whole else math.nan
        assert value == pytest.approx(expected, rel=1e-5, nan_ok=True)


def test_a_resample_that_gives_no_value_is_nan():
    """Whether `compute` raises or returns NaN, and what it warns of is not shown for each of them."""
    scores = torch.tensor([[0.9, 0.1]] * 5 + [[0.1, 0.9]])
    targets = torch.tensor([0] * 5 + [1])
    has_two = [0 < counts[-1] < 6 for counts in Draws(50).of("dev", 6)]
    for statistic in (area, correlation):
        _, resampling = replicated(FunctionMetric("x", statistic, True), scores, targets, count=50)
        assert [not math.isnan(value) for value in resampling.replicates["x"]] == has_two
    assert 0 < sum(has_two) < 50
    assert [resampling.unknown(), resampling.error] == [[], None]
    _, resampling = replicated(FunctionMetric("x", needs_all, True), *classes(), count=50)
    assert [resampling.unknown(), str(resampling.error)] == [["x"], "some are missing"]


def test_one_sample_has_no_spread():
    _, resampling = replicated(FunctionMetric("x", is_right, True, per_sample=True), *classes(1), count=20)
    assert all(map(math.isnan, resampling.replicates["x"]))
    assert resampling.unknown() == ["x"]


def test_the_value_is_that_without_replicates_even_if_compute_changes_its_arguments():
    class Sigmoid(Metric):
        def compute(self, scores):
            return {"x": scores.sigmoid_().mean()}

    scores = torch.randn(100)
    value, resampling = replicated(Sigmoid("x"), scores)
    assert value == scores.sigmoid().mean().item()
    expected = [scores.sigmoid()[np.repeat(np.arange(100), counts)].mean() for counts in Draws(200).of("dev", 100)]
    assert resampling.replicates["x"] == pytest.approx(torch.stack(expected).tolist(), rel=1e-5)


def test_replicates_have_six_digits():
    _, resampling = replicated(FunctionMetric("x", lambda s: s, True, per_sample=True), torch.rand(50))
    assert all(value == float(f"{value:.6g}") for value in resampling.replicates["x"])


def test_only_the_asked_values_are_replicated():
    metric = FunctionMetric("x", lambda s: {"x": s.mean(), "y": s.max()}, {"x": True, "y": True})
    resampling = Resampling(Draws(20), "dev", frozenset(["y"]))
    gatherer = gatherer_of(metric, CPU, None, resampling)
    gatherer.add((torch.rand(9),))
    assert gatherer.values().keys() == {"x", "y"}
    assert resampling.replicates.keys() == {"y"}


def test_what_cannot_be_resampled_is_refused():
    metric = FunctionMetric("x", lambda s, t: 0.0, True)
    metric.do_checks = False
    resampling = Resampling(Draws(20), "dev", frozenset(["x"]))
    gatherer = gatherer_of(metric, CPU, None, resampling)
    gatherer.add((torch.rand(6), torch.rand(3)))
    with pytest.raises(ValueError, match="metric 'x' has arguments") as caught:
        gatherer.values()
    assert str(caught.value) == (
        "metric 'x' has arguments of 6 and 3 samples, which cannot be resampled together, as a rule with 'se' asks: "
        "give each argument one row per sample"
    )
    gatherer = gatherer_of(TorchMetric("x", MeanMetric(), greater_is_better=True), CPU, None, resampling)
    with pytest.raises(TypeError, match="metric 'x' was given a list that is not a tensor") as caught:
        gatherer.add((["a", "b"],))
    assert caught.value.__notes__ == ["a rule asks for standard errors of it, for which its arguments are resampled"]

"""What is computed over batches is what would be computed over the dataset at once. (More processes: distributed.)"""

import gc
import math

import numpy as np
import pytest
import torch
import torchmetrics
from torchmetrics import classification

from accmt.metrics import FunctionMetric, Metric, MetricParallel, TorchMetric
from accmt.metrics.gather import gatherer_of

CPU = torch.device("cpu")


class Keeps(Metric):
    """Its value says little; `arguments` is what it was given."""

    def compute(self, *arguments):
        self.arguments = arguments
        return {self.main_metric: 0.0}


class KeepsParallel(MetricParallel):
    compute = Keeps.compute


def values(metric, *batches, expected=None):
    gatherer = gatherer_of(metric, CPU, expected)
    for batch in batches:
        gatherer.add(batch)
    return gatherer.values()


def split(sizes, *tensors):
    return list(zip(*(tensor.split(sizes) for tensor in tensors), strict=True))


@pytest.mark.parametrize("expected", [None, 1, 2, 10, 100])
@pytest.mark.parametrize("sizes", [[10], [4, 4, 2], [1] * 10, [9, 1], [3, 0, 7], [0, 10]])
@pytest.mark.parametrize("kind", [Keeps, KeepsParallel])
def test_uneven_batches_are_the_whole_dataset_in_order(sizes, kind, expected):
    """However many batches were expected."""
    predictions, targets = torch.randn(10, 3), torch.randint(0, 3, (10,))
    metric = kind("accuracy")
    assert values(metric, *split(sizes, predictions, targets), expected=expected) == {"accuracy": 0}
    assert torch.equal(metric.arguments[0], predictions)
    assert torch.equal(metric.arguments[1], targets)


@pytest.mark.parametrize("sizes", [[10], [4, 4, 2], [1] * 10])
def test_values_do_not_depend_on_the_batches(sizes):
    predictions, targets = torch.rand(10), torch.rand(10)

    def correlation(p, t):
        return np.corrcoef(p.numpy(), t.numpy())[0, 1]

    expected = correlation(predictions, targets)
    metric = FunctionMetric("r", correlation, greater_is_better=True)
    assert values(metric, *split(sizes, predictions, targets)) == {"r": expected}


def test_one_two_and_four_arguments():
    for count in (1, 2, 4):
        metric = Keeps("x")
        tensors = [torch.arange(5) * (index + 1) for index in range(count)]
        values(metric, *split([3, 2], *tensors))
        assert [argument.tolist() for argument in metric.arguments] == [tensor.tolist() for tensor in tensors]


def test_dictionaries_also_in_dictionaries():
    metric = Keeps("x")
    scores, spans = torch.rand(5, 2), torch.arange(5)
    batches = [({"scores": scores[part], "more": {1: spans[part]}}, spans[part]) for part in (slice(0, 3), slice(3, 5))]
    values(metric, *batches)
    first, second = metric.arguments
    assert torch.equal(first["scores"], scores)
    assert torch.equal(first["more"][1], spans)
    assert torch.equal(second, spans)


def test_lists_arrays_and_numbers_become_tensors():
    metric = Keeps("x")
    values(metric, ([1, 2], np.array([1.5, 2.5])), ([3], np.array([3.5])))
    assert metric.arguments[0].tolist() == [1, 2, 3]
    assert metric.arguments[1].tolist() == [1.5, 2.5, 3.5]


@pytest.mark.parametrize(
    ("cast", "given", "kept"),
    [
        (None, torch.float16, torch.float16),
        (None, torch.float64, torch.float64),
        (torch.float32, torch.float16, torch.float32),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float32, torch.float64, torch.float64),
        (torch.float16, torch.float64, torch.float16),
        ("float64", torch.float16, torch.float64),
        ("torch.bfloat16", torch.float32, torch.bfloat16),
        (torch.float32, torch.int64, torch.int64),
        (torch.float32, torch.int8, torch.int8),
        (torch.float32, torch.bool, torch.bool),
        (torch.float16, torch.uint8, torch.uint8),
    ],
)
def test_cast_is_for_floating_point_only(cast, given, kept):
    metric = Keeps("x", cast=cast)
    tensor = torch.tensor([0, 1, 2, 3]).to(given)
    values(metric, (tensor[:3], {"a": tensor[:3]}), (tensor[3:], {"a": tensor[3:]}))
    assert metric.arguments[0].dtype == metric.arguments[1]["a"].dtype == kept
    assert torch.equal(metric.arguments[0], tensor.to(kept))


def test_default_cast_and_that_of_parallel_metrics():
    assert Metric("x").cast == torch.float32
    assert MetricParallel("x").cast is None


@pytest.mark.proves("metrics.FunctionMetric(cast)")
def test_nothing_is_computed_in_less_than_it_was_given():
    seconds = [1.7e9 + index for index in range(4)]
    late = [second + 0.5 for second in seconds]
    error = FunctionMetric("mae", lambda p, t: (p - t).abs().mean(), greater_is_better=False)
    for of in (lambda given: torch.tensor(given, dtype=torch.float64), list, np.array):
        assert values(error, (of(late), of(seconds))) == {"mae": 0.5}
    whole = FunctionMetric("age", lambda p: p.max(), greater_is_better=False)
    large = 2**53 - 1
    assert values(whole, (torch.tensor([large]),), (torch.tensor([1.0]),)) == {"age": large}
    half = FunctionMetric("dtype", lambda p: p.element_size(), True, cast="bfloat16")
    assert values(half, (torch.ones(2, dtype=torch.float64),)) == {"dtype": 2}


@pytest.mark.proves("metrics.FunctionMetric(greater_is_better)", "metrics.FunctionMetric(name)")
def test_a_function_needs_a_direction():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'greater_is_better'"):
        FunctionMetric("mae", lambda p, t: (p - t).abs().mean())
    assert FunctionMetric("mae", abs, greater_is_better=False).greater_is_better is False


@pytest.mark.parametrize("cast", ["float", "float31", "load", "Tensor", 3, ["float32"]])
def test_wrong_casts(cast):
    if cast == "float":
        assert Metric("x", cast=cast).cast == torch.float32
        return
    with pytest.raises(ValueError, match="which is not a torch dtype") as caught:
        Metric("x", cast=cast)
    assert str(caught.value) == f"cast is {cast!r}, which is not a torch dtype; for example 'float32'"


@pytest.mark.parametrize("name", ["", None, 3])
def test_a_metric_needs_a_name(name):
    with pytest.raises(ValueError, match="a metric needs a name, not") as caught:
        Metric(name)
    assert str(caught.value) == f"a metric needs a name, not {name!r}"


def test_a_metric_without_compute():
    class Empty(Metric):
        pass

    with pytest.raises(NotImplementedError, match=r"^Empty has no compute$"):
        values(Empty("x"), (torch.ones(1),))


@pytest.mark.parametrize("kind", [Keeps, KeepsParallel])
def test_different_numbers_of_samples_are_an_error_at_once(kind):
    gatherer = gatherer_of(kind("f1"), CPU)
    with pytest.raises(ValueError, match="f1") as caught:
        gatherer.add((torch.ones(4, 2), {"a": torch.ones(4), "b": torch.ones(3)}))
    assert str(caught.value) == (
        "metric 'f1' was given different numbers of samples in one batch: shapes (4, 2), (4,), (3,)"
    )


def test_a_tensor_without_dimensions_is_an_error():
    gatherer = gatherer_of(Keeps("f1"), CPU)
    with pytest.raises(ValueError, match="f1") as caught:
        gatherer.add((torch.ones(4), torch.tensor(0.5)))
    assert str(caught.value) == (
        "metric 'f1' was given a tensor without dimensions: the first dimension is the samples of the batch"
    )


def test_without_checks_different_numbers_are_the_users_business():
    metric = Keeps("queries", do_checks=False)
    values(metric, (torch.ones(4), torch.ones(2)), (torch.ones(1), torch.ones(3)))
    assert [len(argument) for argument in metric.arguments] == [5, 5]
    values(metric, (torch.ones(4), torch.ones(2)))
    assert [len(argument) for argument in metric.arguments] == [4, 2]


def test_what_is_no_tensor_is_named():
    with pytest.raises(TypeError) as caught:
        gatherer_of(Keeps("bleu"), CPU).add((["a text"],))
    assert str(caught.value) == (
        "metric 'bleu' was given a list that is not a tensor: too many dimensions 'str'; "
        "give tensors, or dictionaries of tensors"
    )


def test_batches_that_do_not_fit_together():
    cases = [
        (
            [(torch.ones(2, 5),), (torch.ones(2, 7),)],
            "the batches of metric 'f1' differ in more than their number of samples: (2, 5), (2, 7), ...; "
            "give the metric a number to fill them up with (pad=...), or pad them in validation_step",
        ),
        (
            [({"a": torch.ones(2)},), ({"b": torch.ones(2)},)],
            "the batches of metric 'f1' differ in the keys of their arguments",
        ),
        (
            [({"a": torch.ones(2)},), (torch.ones(2),)],
            "the batches of metric 'f1' differ in the keys of their arguments",
        ),
        (
            [(torch.ones(2),), (torch.ones(2), torch.ones(2))],
            "the batches of metric 'f1' differ in their number of arguments",
        ),
        ([], "metric 'f1' got no samples"),
    ]
    for batches, expected in cases:
        with pytest.raises(ValueError, match="f1") as caught:
            values(Keeps("f1"), *batches)
        assert str(caught.value) == expected


@pytest.mark.parametrize("expected", [None, 3])
def test_batches_of_other_dtypes_and_without_dimensions_are_joined_as_ever(expected):
    metric = Keeps("x", do_checks=False)
    values(metric, (torch.tensor([2**53 - 1]),), (torch.tensor([0.5]),), (torch.tensor([1]),), expected=expected)
    assert metric.arguments[0].tolist() == [2**53 - 1, 0.5, 1]
    with pytest.raises(ValueError, match=r"^metric 'x' was given a tensor without dimensions$"):
        values(metric, (torch.ones(1), torch.tensor(0.5)), expected=expected)


def test_batches_of_an_expected_number_are_copied_once():
    """What the metric gets is where the first batch was kept."""
    metric = Keeps("x")
    gatherer = gatherer_of(metric, CPU, 3)
    for part in torch.arange(5).split(2):
        gatherer.add(({"a": part},))
    kept = gatherer._batches[0][0, "a"].data_ptr()
    gatherer.values()
    assert metric.arguments[0]["a"].tolist() == [0, 1, 2, 3, 4]
    assert metric.arguments[0]["a"].data_ptr() == kept


def tensors_of(gatherer):
    return [tensor for batch in gatherer._batches for tensor in batch.values()]


@pytest.mark.parametrize("cast", [None, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_no_memory_of_a_larger_tensor_is_kept(cast, dtype):
    """The last token of long logits, a column, a repeated value."""
    logits = torch.ones(4, 1000, 10, dtype=dtype)
    gatherer = gatherer_of(Keeps("x", cast=cast), CPU)
    gatherer.add((logits[:, -1], logits[..., 0], logits[:1].expand(4, 1000, 10)[:, 0]))
    for tensor in tensors_of(gatherer):
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_no_graph_is_kept():
    gatherer = gatherer_of(Keeps("x"), CPU)
    gatherer.add((torch.ones(3, requires_grad=True) * 2,))
    assert all(not tensor.requires_grad and tensor.grad_fn is None for tensor in tensors_of(gatherer))


@pytest.mark.parametrize("make", [lambda: torch.zeros(3), lambda: np.zeros(3, dtype=np.float32)])
def test_a_buffer_that_is_used_again_changes_nothing(make):
    metric, buffer = Keeps("x"), make()
    gatherer = gatherer_of(metric, CPU)
    for value in (1, 2):
        buffer[:] = value
        gatherer.add((buffer,))
    gatherer.values()
    assert metric.arguments[0].tolist() == [1, 1, 1, 2, 2, 2]


def test_nothing_is_kept_after_the_values():
    gatherer = gatherer_of(FunctionMetric("x", lambda p: p.sum(), greater_is_better=True), CPU)
    gatherer.add((torch.ones(7, 11, 13),))
    gatherer.values()
    gc.collect()
    assert not [t for t in gc.get_objects() if type(t) is torch.Tensor and t.shape == (7, 11, 13)]


def test_main_metric():
    class Report(Metric):
        def compute(self, predictions):
            return {"f1": predictions.mean(), "precision": 0.5}

    assert Report("report").main_metric == "report"
    metric = Report("report", main_metric="f1", greater_is_better=False)
    assert (metric.name, metric.main_metric, metric.greater_is_better) == ("report", "f1", False)
    assert values(metric, (torch.tensor([1.0, 2.0]),)) == {"f1": 1.5, "precision": 0.5}
    assert repr(metric) == "Report('report')"


@pytest.mark.proves("metrics.FunctionMetric", "metrics.FunctionMetric(function)")
def test_a_function_of_one_number_or_several():
    batch = (torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
    assert values(FunctionMetric("mse", lambda p, t: (p - t).square().mean(), False), batch) == {"mse": 2}
    assert values(FunctionMetric("mae", lambda p, t: {"mae": 1, "max": 2}, False), batch) == {"mae": 1, "max": 2}


def right(guesses, true):
    return guesses == true


@pytest.mark.proves("metrics.FunctionMetric(per_sample)")
@pytest.mark.parametrize("sizes", [[10], [4, 4, 2], [1] * 10, [3, 0, 7]])
def test_the_mean_of_a_score_per_sample(sizes):
    guesses, true = torch.randint(2, (10,)), torch.randint(2, (10,))
    batches = split(sizes, guesses, true)
    accuracy = FunctionMetric("accuracy", right, True, per_sample=True)
    assert values(accuracy, *batches) == {"accuracy": right(guesses, true).double().mean().item()}
    array = FunctionMetric("accuracy", lambda g, t: right(g, t).numpy(), True, per_sample=True)
    assert values(array, *batches) == values(accuracy, *batches)
    both = FunctionMetric("accuracy", lambda g, t: {"accuracy": right(g, t), "sum": g + t}, True, per_sample=True)
    assert values(both, *batches) == {**values(accuracy, *batches), "sum": (guesses + true).double().mean().item()}


def test_scores_are_summed_in_double_precision_from_what_other_metrics_get():
    large = torch.tensor([2.0**24, 1, 1, 1])
    mean = FunctionMetric("mean", lambda x: x["x"], True, per_sample=True)
    assert values(mean, *(({"x": part},) for part in large.split(2))) == {"mean": (2**24 + 3) / 4}
    half = FunctionMetric("size", lambda x: torch.full((len(x),), x.element_size()), True, per_sample=True)
    assert values(half, (torch.ones(2, dtype=torch.float16),)) == {"size": 4}
    assert math.isnan(values(mean, ({"x": large},), ({"x": torch.tensor([math.nan])},))["mean"])


@pytest.mark.proves("metrics.Metric(per_sample)")
def test_a_mean_over_parts_of_samples():
    """The tokens of the samples count, and nothing is kept of them."""

    class TokenAccuracy(Metric):
        per_sample = True

        def compute(self, guesses, true):
            counts = true >= 0
            return {self.name: (((guesses == true) & counts).flatten(1).sum(1), counts.flatten(1).sum(1))}

    guesses, true = torch.randint(2, (7, 5)), torch.randint(-1, 2, (7, 5))
    expected = (guesses == true)[true >= 0].double().mean().item()
    metric = TokenAccuracy("accuracy")
    assert values(metric, *split([3, 3, 1], guesses, true)) == {"accuracy": pytest.approx(expected, abs=1e-15)}
    assert math.isnan(values(metric, (guesses, torch.full_like(true, -1)))["accuracy"])
    gatherer = gatherer_of(metric, CPU)
    gatherer.add((guesses := torch.ones(7, 11, 13), guesses))
    del guesses
    gc.collect()
    assert not [t for t in gc.get_objects() if type(t) is torch.Tensor and t.shape[:2] == (7, 11)]


@pytest.mark.parametrize(
    ("scores", "described"),
    [
        (lambda x: x.mean(), "Tensor of shape ()"),
        (lambda x: x[:, None], "Tensor of shape (3, 1)"),
        (lambda x: x[1:], "Tensor of shape (2,)"),
        (lambda x: x.tolist(), "list of shape ()"),
        (lambda x: 0.5, "float of shape ()"),
        (lambda x: (x, x.sum()), "Tensor of shape ()"),
    ],
)
def test_other_than_a_score_per_sample_is_an_error(scores, described):
    gatherer = gatherer_of(FunctionMetric("mae", scores, False, per_sample=True), CPU)
    with pytest.raises(TypeError, match="mae") as caught:
        gatherer.add((torch.ones(3),))
    assert str(caught.value) == (
        f"metric 'mae' has per_sample=True and computed 'mae' of 3 samples as a {described}: "
        "it must be a tensor of shape (3,), a score each"
    )


def test_what_does_not_go_with_a_score_per_sample():
    with pytest.raises(ValueError, match=r"^metric 'x' got no samples$"):
        values(FunctionMetric("x", abs, True, per_sample=True))
    with pytest.raises(ValueError, match="pad") as caught:
        FunctionMetric("x", abs, True, per_sample=True, pad=0)
    assert str(caught.value) == "pad of 'x' has no effect with per_sample=True, which joins no batches: leave it out"
    names = iter("ab")
    changing = gatherer_of(FunctionMetric("a", lambda x: {next(names): x}, True, per_sample=True), CPU)
    changing.add((torch.ones(1),))
    with pytest.raises(ValueError, match="other names") as caught:
        changing.add((torch.ones(1),))
    assert str(caught.value) == "the scores of metric 'a' have other names in each batch: ['a'] and ['b']"


class Mean(MetricParallel):
    def compute(self, predictions):
        return {"mean": predictions.float().mean(), "count": len(predictions)}


def test_parallel_is_exact_on_one_process():
    assert values(Mean("mean"), (torch.tensor([1, 2, 3]),), (torch.tensor([10]),)) == {"mean": 4, "count": 4}
    assert values(Mean("mean")) == {}
    nothing = values(Mean("mean"), (torch.tensor([math.nan]),))
    assert math.isnan(nothing["mean"])


@pytest.mark.parametrize("kind", [Metric, MetricParallel])
def test_an_error_of_compute_keeps_its_type(kind):
    class Broken(kind):
        def compute(self, predictions):
            raise ZeroDivisionError("no positives")

    with pytest.raises(ZeroDivisionError, match="no positives"):
        values(Broken("f1"), (torch.ones(1),))


TORCHMETRICS = {
    "accuracy": lambda: classification.MulticlassAccuracy(4, average="micro"),
    "macro f1": lambda: classification.MulticlassF1Score(4, average="macro"),
    "auroc": lambda: classification.MulticlassAUROC(4),
}


@pytest.mark.parametrize("name", TORCHMETRICS)
@pytest.mark.parametrize("sizes", [[50], [16, 16, 16, 2], [1] * 50])
def test_torchmetrics_by_hand(name, sizes):
    logits, targets = torch.randn(50, 4).softmax(-1), torch.randint(0, 4, (50,))
    by_hand = TORCHMETRICS[name]()
    by_hand.update(logits, targets)
    metric = TorchMetric("it", TORCHMETRICS[name]())
    assert metric.greater_is_better is True
    for _ in range(2):  # the second evaluation knows nothing of the first
        result = values(metric, *split(sizes, logits, targets))
        assert result["it"].item() == pytest.approx(by_hand.compute().item(), abs=1e-6)
    assert metric.compute(logits, targets)["it"].item() == pytest.approx(by_hand.compute().item(), abs=1e-6)


def test_torchmetrics_direction():
    assert TorchMetric("mse", torchmetrics.MeanSquaredError()).greater_is_better is False
    assert TorchMetric("mse", torchmetrics.MeanSquaredError(), greater_is_better=True).greater_is_better is True
    matrix = classification.MulticlassConfusionMatrix(3)
    with pytest.raises(ValueError, match="higher is better") as caught:
        TorchMetric("matrix", matrix)
    assert str(caught.value) == (
        "MulticlassConfusionMatrix does not say whether higher is better: give greater_is_better=True or False"
    )
    assert TorchMetric("matrix", matrix, greater_is_better=False).greater_is_better is False


def test_several_torchmetrics_in_one():
    collection = torchmetrics.MetricCollection(
        {"acc": classification.MulticlassAccuracy(3), "f1": classification.MulticlassF1Score(3)}
    )
    metric = TorchMetric("report", collection, greater_is_better=True, main_metric="f1")
    result = values(metric, (torch.eye(3), torch.tensor([0, 1, 2])))
    assert {name: value.item() for name, value in result.items()} == {"acc": 1, "f1": 1}

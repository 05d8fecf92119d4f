"""Metrics in a training: what `compute` is given, what it may return, and what rules make of it."""

from functools import partial

import numpy as np
import pytest
import torch

from accmt import Metric, MetricParallel

KINDS = [Metric, MetricParallel]


@pytest.fixture
def trainer(trainer):
    """Without the sanity check, which computes metrics as well (`tests/loop/test_sanity_check.py` has it)."""
    return partial(trainer, sanity_check=False)


def metric_of(kind, compute, name="error", **options):
    """A metric of the class, whose `compute` is the function."""
    return type("Own", (kind,), {"compute": lambda self, *arguments: compute(*arguments)})(name, **options)


class Gives:
    """A module that gives a metric what a function makes of the outputs and the targets of a batch."""

    def __new__(cls, regression, make, name="error"):
        class Module(regression):
            def validation_step(self, key, batch):
                outputs = super().validation_step(key, batch)
                given = make(*outputs.pop("error"))
                return {"loss": outputs["loss"], name: given}

        return Module()


@pytest.mark.proves(
    "metrics.Metric(name)",
    "metrics.MetricParallel(name)",
    "metrics.Metric.compute(*args)",
    "metrics.MetricParallel.compute(*args)",
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("give", "expected"),
    [
        (lambda outputs, targets: targets, lambda targets: [targets]),
        (lambda outputs, targets: (targets,), lambda targets: [targets]),
        (lambda outputs, targets: [targets, -targets], lambda targets: [targets, -targets]),
        (lambda outputs, targets: (targets, targets + 1, -targets), lambda targets: [targets, targets + 1, -targets]),
        (lambda outputs, targets: {"a": targets, "b": -targets}, lambda targets: [{"a": targets, "b": -targets}]),
        (
            lambda outputs, targets: (targets, {"a": {1: -targets}}),
            lambda targets: [targets, {"a": {1: -targets}}],
        ),
    ],
    ids=["tensor", "one", "two", "three", "dictionary", "both"],
)
def test_compute_is_given_the_arguments_of_all_samples(trainer, regression, data, kind, give, expected):
    """Tensors and dictionaries of tensors, as many as `validation_step` gave, over the whole dataset in its order."""
    calls = []

    def compute(*arguments):
        calls.append(arguments)
        return {"error": 0.0}

    validation = data(10, 3)
    trainer(epochs=1, metrics=metric_of(kind, compute)).fit(Gives(regression, give), data(8), validation)
    [arguments] = calls
    torch.testing.assert_close(list(arguments), expected(validation.tensors[1]))


@pytest.mark.proves("metrics.Metric.compute", "metrics.MetricParallel.compute")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "value",
    [
        0.5,
        1,
        True,
        torch.tensor(0.5),
        torch.tensor([0.5]),
        torch.tensor(3),
        np.float32(0.5),
        np.int64(2),
        np.array(0.5),
        np.array([0.5]),
    ],
    ids=lambda value: f"{type(value).__name__}-{value}",
)
def test_a_value_may_be_any_single_number(trainer, regression, data, kind, value):
    metric = metric_of(kind, lambda *arguments: {"error": value, "more": value})
    training = trainer(epochs=1, metrics=metric)
    training.register_model_saving("best_error")
    training.fit(regression(), data(8), data(4))
    number = float(np.asarray(value).reshape(()))
    values = training.state.additional_metrics["0"]
    assert {name: (type(values[name]), values[name]) for name in ("error", "more")} == dict.fromkeys(
        ("error", "more"), (float, number)
    )
    assert training.best("best_error").values == {"error": number}


@pytest.mark.proves("metrics.Metric(greater_is_better)", "metrics.MetricParallel(greater_is_better)")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "best"), [({}, 2), ({"greater_is_better": True}, 2), ({"greater_is_better": False}, 3)]
)
def test_the_direction_says_which_value_is_best(trainer, regression, data, kind, options, best):
    values = iter([0.5, 0.9, 0.1])
    training = trainer(epochs=3, metrics=metric_of(kind, lambda *arguments: {"error": next(values)}, **options))
    training.register_model_saving("best_error")
    training.fit(regression(), data(8), data(4))
    assert training.best("best_error").epoch == best


@pytest.mark.proves(
    "metrics.Metric(name)",
    "metrics.Metric(main_metric)",
    "metrics.MetricParallel(name)",
    "metrics.MetricParallel(main_metric)",
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_main_value_is_the_one_of_the_rules(trainer, regression, data, kind):
    """By default it has the name of the metric; `validation_step` gives the arguments under that name in any case."""
    values = iter([(0.1, 0.9), (0.2, 0.8)])

    def compute(*arguments):
        return dict(zip(("f1", "recall"), next(values), strict=True))

    training = trainer(metrics=metric_of(kind, compute, "report", main_metric="f1"))
    training.register_model_saving("best_f1")
    training.fit(Gives(regression, lambda outputs, targets: targets, "report"), data(8), data(4))
    assert training.best("best_f1").epoch == 2
    assert training.state.additional_metrics["0"].keys() == {"valid_loss", "f1", "recall"}
    metric = metric_of(kind, lambda *arguments: {"f1": 0.5, "recall": 0.5}, "recall")
    plain = trainer("plain", metrics=metric)
    plain.register_model_saving("best_recall")
    plain.fit(Gives(regression, lambda outputs, targets: targets, "recall"), data(8), data(4))
    assert plain.best("best_recall").values == {"recall": 0.5}


@pytest.mark.proves("metrics.Metric(do_checks)", "metrics.MetricParallel(do_checks)")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"do_checks": True}])
def test_different_numbers_of_samples_are_found_at_the_first_batch(trainer, regression, data, kind, options):
    batches = []

    def uneven(outputs, targets):
        batches.append(1)
        return targets, targets[1:]

    metric = metric_of(kind, lambda *arguments: {"error": 0.0}, **options)
    with pytest.raises(ValueError, match="'error'") as caught:
        trainer(epochs=1, metrics=metric).fit(Gives(regression, uneven), data(8), data(12))
    assert str(caught.value) == (
        "metric 'error' was given different numbers of samples in one batch: shapes (4, 1), (3, 1)"
    )
    assert len(batches) == 1


@pytest.mark.proves("metrics.Metric(do_checks)", "metrics.MetricParallel(do_checks)")
@pytest.mark.parametrize("kind", KINDS)
def test_without_checks_they_are_taken_as_they_are(trainer, regression, data, kind):
    sizes = []

    def compute(*arguments):
        sizes.append([len(argument) for argument in arguments])
        return {"error": 0.0}

    metric = metric_of(kind, compute, do_checks=False)
    module = Gives(regression, lambda outputs, targets: (targets, targets[1:]))
    trainer(epochs=1, metrics=metric).fit(module, data(8), data(12))
    assert sizes == [[12, 9]]


@pytest.mark.proves("metrics.Metric(cast)")
@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, torch.float32),
        ({"cast": torch.float64}, torch.float64),
        ({"cast": "float64"}, torch.float64),
        ({"cast": torch.bfloat16}, torch.bfloat16),
        ({"cast": None}, torch.float16),
    ],
)
def test_floating_point_tensors_are_cast_and_others_are_not(trainer, regression, data, options, kept):
    seen = []

    def compute(values, more):
        seen.extend([values.dtype, more["whole"].dtype])
        return {"error": 0.0}

    def give(outputs, targets):
        return targets.half(), {"whole": targets.to(torch.int16)}

    trainer(epochs=1, metrics=metric_of(Metric, compute, **options)).fit(Gives(regression, give), data(8), data(4))
    assert seen == [kept, torch.int16]


@pytest.mark.proves("metrics.MetricParallel")
def test_a_parallel_metric_leaves_tensors_as_they_are(trainer, regression, data):
    seen = []

    def compute(values):
        seen.append(values.dtype)
        return {"error": 0.0}

    module = Gives(regression, lambda outputs, targets: targets.half())
    trainer(epochs=1, metrics=metric_of(MetricParallel, compute)).fit(module, data(8), data(4))
    assert seen == [torch.float16]


@pytest.mark.proves("AcceleratorModule.validation_step")
def test_a_loss_alone_is_enough(trainer, regression, data):
    class Alone(regression):
        def validation_step(self, key, batch):
            return super().validation_step(key, batch)["loss"]

    values = []
    for name, kind in (("alone", Alone), ("dictionary", regression)):
        torch.manual_seed(0)
        training = trainer(name, epochs=1)
        training.fit(kind(), data(8), data(10, 2))
        values.append(training.state.additional_metrics)
    assert values[0] == values[1]

"""What luck does to selection: simulated models whose true accuracy is known, decided by the engine.

Evaluations of one training share the samples of their dataset, and the resamples of these. So a model is simulated by
the samples on which it is right.
"""

import numpy as np
import pytest

from accmt.rules import Facts, Observation, Progress, Reported, RuleEngine, Rules, SavingRule
from accmt.rules.ranking import Objective, RankedRule, Scored, beats
from accmt.rules.standard_error import paired_error

FACTS = Facts({"accuracy": Reported(("dev",), True)}, ("dev",))
REPLICATES = 200


def resamples_of(samples, generator):
    """How often each resample of a dataset has each sample, divided by their number."""
    return generator.multinomial(samples, np.full(samples, 1 / samples), size=REPLICATES) / samples


def engine_of(rule):
    return RuleEngine(Rules((SavingRule.parse(rule),)), FACTS)


def saves(engine, number, right, resamples):
    """Whether a rule saves a model that is right on these samples, in an evaluation of this number."""
    replicates = tuple((resamples @ right).tolist())
    values = {"dev": {"accuracy": float(right.mean())}}
    decision = engine.after_evaluation(
        Observation(Progress(number, number, 0, number), values, replicates={"dev": {"accuracy": replicates}})
    )
    return bool(decision.saved)


def models(generator, trials, samples, gain):
    """For each trial, the samples on which a model of accuracy 0.8 is right, and those of one that is better by `gain`.

    They agree on most samples, as models of one training do: one in ten is predicted again.
    """
    first = generator.random((trials, samples)) < 0.8
    again = generator.random((trials, samples)) < 0.1
    second = np.where(again, generator.random((trials, samples)) < 0.8 + 10 * gain, first)
    return first, second


def share_replaced(rule, first, second, resamples):
    """The share of trials in which a rule replaces the first model by the second."""
    saving = SavingRule.parse(rule)
    [objective] = saving.saving.ranking.objectives
    ranked = RankedRule(saving, saving.name, ((Objective(objective, True, "accuracy"),),))

    def scored(right):
        return Scored((float(right.mean()),), (tuple((resamples @ right).tolist()),))

    pairs = zip(first, second, strict=True)
    return sum(beats(ranked, scored(other), scored(one))[0] for one, other in pairs) / len(first)


def test_models_of_equal_accuracy_seldom_replace_each_other():
    generator = np.random.default_rng(0)
    resamples = resamples_of(1_000, generator)
    pair = models(generator, 2_000, 1_000, gain=0.0)
    assert 0.01 <= share_replaced("accuracy by 2 se", *pair, resamples) <= 0.04
    assert 0.4 <= share_replaced("accuracy", *pair, resamples) <= 0.55


def test_a_model_that_is_better_by_three_standard_errors_replaces_the_other():
    generator = np.random.default_rng(1)
    # Of the tenth predicted again, the second model is right on 0.945: they differ on 0.2 * 0.945 + 0.8 * 0.055.
    error = np.sqrt(0.1 * (0.2 * 0.945 + 0.8 * 0.055) / 1_000)
    assert 0.0145 / error == pytest.approx(3, abs=0.02)
    pair = models(generator, 2_000, 1_000, gain=0.0145)
    assert share_replaced("accuracy by 2 se", *pair, resamples_of(1_000, generator)) >= 0.8


def noise(seed, samples=300, evaluations=12):
    """The predictions of a training on random labels, which changes half of them between evaluations."""
    generator = np.random.default_rng(seed)
    right = generator.random(samples) < 0.5
    for _ in range(evaluations):
        yield right
        right = np.where(generator.random(samples) < 0.5, generator.random(samples) < 0.5, right)


@pytest.mark.parametrize(("rule", "fewest", "most"), [("accuracy by 2 se", 80, 100), ("accuracy", 0, 30)])
def test_a_training_on_noise_keeps_its_first_model(rule, fewest, most):
    resamples, kept = resamples_of(300, np.random.default_rng(0)), 0
    for seed in range(100):
        engine = engine_of(rule)
        kept += sum(saves(engine, number, right, resamples) for number, right in enumerate(noise(seed), 1)) == 1
    assert fewest <= kept <= most


@pytest.mark.parametrize(("samples", "accuracy"), [(200, 0.6), (1_000, 0.9)])
def test_the_standard_error_of_a_difference_of_accuracies_is_the_exact_one(samples, accuracy):
    generator = np.random.default_rng(2)
    resamples = resamples_of(samples, generator)
    one, other = generator.random((2, samples)) < accuracy
    differences = one.astype(float) - other
    exact = differences.std() / np.sqrt(samples)
    assert paired_error(tuple(resamples @ one), tuple(resamples @ other)).value == pytest.approx(exact, rel=0.15)

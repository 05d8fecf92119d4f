"""When conditions on counters are asked, amounts beyond rounding, and states of before."""

import json
import math

import pytest

from accmt.rules import (
    CadenceRule,
    Facts,
    Length,
    MetricsStore,
    Observation,
    Progress,
    Reported,
    RuleEngine,
    RuleError,
    Rules,
    SavingRule,
    StopCondition,
    check,
)
from accmt.rules.evaluator import exceeds

FACTS = Facts({"acc": Reported(("dev",), True)}, ("dev",), Length(1_000, 100), {"kl": False})


def engine_of(*stop_when, saving="acc"):
    rules = Rules((SavingRule.parse(saving),), tuple(map(StopCondition.parse, stop_when)))
    check(rules, FACTS)
    return RuleEngine(rules, FACTS)


@pytest.mark.parametrize(
    ("condition", "after", "step", "elapsed"),
    [
        ("step > 37", 5, 37, math.inf),
        ("step >= 37", 5, 37, math.inf),
        ("step == 37", 37, 38, math.inf),
        ("step > 37", 38, None, math.inf),
        ("37.5 < step", 5, 38, math.inf),
        ("step > 10%", 5, 100, math.inf),
        ("step * 2 > 50", 5, 6, math.inf),
        ("elapsed > 2 minutes", 5, None, 120.0),
        ("elapsed > 2 minutes and step > 8", 5, 8, 120.0),
        ("elapsed * 2 > 240", 5, None, 6.0),
        ("epoch >= 3 or acc > 0.5", 5, None, math.inf),
        ("acc > 0.5 or step > 50", 5, 50, math.inf),
        ("acc > 0.5 and step > 50", 5, None, math.inf),
    ],
)
def test_the_next_step_at_which_a_condition_can_begin_to_hold(condition, after, step, elapsed):
    engine = engine_of(condition)
    engine.after_step(Progress(after, elapsed=5.0))
    assert (engine.next_step, engine.next_elapsed) == (step, elapsed)


@pytest.mark.parametrize("elapsed", [0.1, 0.3, 1 / 3, 7200.0])
def test_a_moment_is_not_passed_over(elapsed):
    engine = engine_of(f"elapsed > {elapsed!r}")
    engine.after_step(Progress(1))
    assert engine.stop_at(Progress(2, elapsed=engine.next_elapsed)) is None
    engine.after_step(Progress(2, elapsed=engine.next_elapsed))
    assert engine.stop_at(Progress(3, elapsed=engine.next_elapsed)) is not None


def test_what_is_asked_when():
    engine = engine_of("kl < 0.1 or step > 50", "train_loss < 0.1 and kl < 0.5", "acc > 0.9", "stalled(kl, 1)")
    assert engine.watches
    assert engine.stop_at(Progress(50)) is None
    assert engine.stop_at(Progress(51)).asked_by == "kl < 0.1 or step > 50"
    assert engine.after_logging(Progress(5), 0.05, {"kl": 0.6}) is None
    assert engine.after_logging(Progress(5), 0.05, {"kl": 0.4}).asked_by == "train_loss < 0.1 and kl < 0.5"
    assert engine.after_logging(Progress(5), 0.5) is None
    assert not engine_of("step > 5", "acc > kl").watches


@pytest.mark.parametrize(
    ("value", "other", "amount", "more"),
    [
        (0.82, 0.81, 0.01, False),
        (0.81, 0.82, 0.01, False),
        (71.3, 71.2, 0.1, False),
        (0.8201, 0.81, 0.01, True),
        (1e-12, 0.0, 0.0, True),
        (1 + 1e-10, 1.0, 0.0, False),
        (math.inf, 1.0, 1e300, True),
        (1.0, -math.inf, 1e300, True),
        (1e308, -1e308, 1.0, True),
        (5.0, 1.0, 1e9, False),
    ],
)
def test_more_than_an_amount(value, other, amount, more):
    assert exceeds(value, other, amount) is more


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("scale", [100, 1_000])
def test_exactly_an_amount_is_never_more(sign, scale):
    saved = 0
    for number in range(scale):
        engine = engine_of(saving=f"{'max' if sign > 0 else 'min'}(acc) by {1 / scale!r}")
        for evaluation, value in enumerate((number, number + sign), start=1):
            values = {"dev": {"acc": value / scale}}
            decision = engine.after_evaluation(Observation(Progress(evaluation, evaluation=evaluation), values))
        saved += len(decision.saved)
    assert saved == 0


def test_a_state_of_before_is_taken_up():
    engine = engine_of("step > 50")
    engine.after_step(Progress(40, 0, 40))
    engine.after_evaluation(Observation(Progress(40, 0, 40, 1), {"dev": {"acc": 0.5}}))
    state = json.loads(json.dumps(engine.state()))
    del state["now"]
    later = engine_of("step > 50")
    assert later.restore(state) == []
    assert later.next_step == 1
    assert later.standing_stop(Progress(60)).asked_by == "step > 50"


def test_a_store_that_is_restricted_stays_as_it_was():
    store = MetricsStore()
    store.record(
        Observation(Progress(1), {"dev": {"acc": 0.5}, "test": {"acc": 0.6, "f1": 0.7}}, 0.1, training={"kl": 1})
    )
    less = store.restricted({"acc": ("dev",)})
    assert (dict(less.on("acc")), dict(less.on("f1"))) == ({"dev": 0.5}, {})
    assert (dict(store.on("acc")), dict(store.on("f1"))) == ({"dev": 0.5, "test": 0.6}, {"test": 0.7})
    assert (less.train_loss, less.training, less.is_empty) == (0.1, {"kl": 1}, False)


@pytest.mark.parametrize("text", ["3 evaluations", "5 steps or 2 evals", "epoch after 2 evaluations"])
def test_logs_are_not_counted_in_evaluations(text):
    with pytest.raises(RuleError, match="logs cannot be counted in evaluations"):
        CadenceRule.parse(text, logs=True)


def test_training_metrics_need_no_validation_data():
    facts = Facts({}, (), Length(), {"kl": False})
    check(Rules((SavingRule.parse("kl"),), (StopCondition.parse("kl < 0.1"),)), facts)
    with pytest.raises(RuleError, match=r"only train_loss, kl are reported\n  did you mean 'kl'"):
        check(Rules((SavingRule.parse("kll"),)), facts)

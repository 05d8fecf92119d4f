"""When cadences come due: by every counter, in jumps, joined by `or`, after a while, and over resumes."""

import itertools
import json
import math

import pytest

from accmt.rules import CadenceRule, Facts, Length, Observation, Progress, RuleEngine, Rules, SavingRule, check
from accmt.rules.cadence import never_due

LENGTH = Length(total_steps=100, steps_per_epoch=10, samples_per_step=4)
RULE = SavingRule.parse("train_loss")


def engine_of(text, length=LENGTH, role="checkpoint"):
    return RuleEngine(Rules((RULE,), **{role: CadenceRule.parse(text)}), Facts({}, ("dev",), length))


def at(step, per_epoch=10, **counters):
    """The progress at a step whose samples and seconds follow from it, unless they are given."""
    usual = {"samples": 4 * step, "elapsed": 6.0 * step, "evaluation": 0}
    return Progress(step, step // per_epoch, step % per_epoch, **(usual | counters))


def due_at(text, steps=range(1, 101), length=LENGTH, per_epoch=10):
    engine = engine_of(text, length)
    return [step for step in steps if engine.after_step(at(step, per_epoch)).checkpoint]


@pytest.mark.proves("Trainer(checkpoint_every)")
@pytest.mark.parametrize(
    "text", ["epoch", "ep", "1epoch", "1ep", "1 epoch", "1 ep", "epochs", "eps", "1epochs", "1eps", "1 epochs", "1 eps"]
)
def test_documented_epoch(text):
    assert due_at(text) == list(range(10, 101, 10))


@pytest.mark.proves("Trainer(checkpoint_every)")
@pytest.mark.parametrize("text", ["step", "st", "1step", "1st", "1 step", "1 st", "steps", "sts", "1 steps", "1 sts"])
def test_documented_step(text):
    assert due_at(text) == list(range(1, 101))


@pytest.mark.proves("Trainer(checkpoint_every)")
@pytest.mark.parametrize(
    "text",
    [
        "evaluation",
        "eval",
        "1evaluation",
        "1eval",
        "1 evaluation",
        "1 eval",
        "evaluations",
        "evals",
        "1evals",
        "1 evals",
    ],
)
def test_documented_evaluation(text):
    engine = engine_of(text)
    assert not engine.after_step(at(10)).checkpoint
    for number in (1, 2, 3):
        assert engine.after_evaluation(Observation(at(10 * number, evaluation=number))).checkpoint
        assert not engine.after_step(at(10 * number + 1, evaluation=number)).checkpoint


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("30 steps", [30, 60, 90]),
        ("3 epochs", [30, 60, 90]),
        ("every 3 epochs", [30, 60, 90]),
        ("0.5 epochs", list(range(5, 101, 5))),
        ("1.5 epochs", [15, 30, 45, 60, 75, 90]),
        ("0.25 epochs after 9 epochs", [93, 95, 98, 100]),
        ("10%", list(range(10, 101, 10))),
        ("33%", [33, 66, 99]),
        ("150%", []),
        ("100 samples", [25, 50, 75, 100]),
        ("3 minutes", [30, 60, 90]),
        ("0.05 hours", [30, 60, 90]),
        ("90 sec", [15, 30, 45, 60, 75, 90]),
        ("30 steps after 30 steps", [60, 90]),
        ("30 steps after 35%", [60, 90]),
        ("2 epochs after 10%", [20, 40, 60, 80, 100]),
        ("1 epoch after 8 epochs", [90, 100]),
        ("1 epoch after 8 minutes", [90, 100]),
        ("40 steps or 4 minutes", [40, 80]),
        ("25 steps or 4 minutes", [25, 50, 75, 100]),
        ("1 epoch or 7 steps", [7, 10, 17, 20, 27, 30, 37, 40, 47, 50, 57, 60, 67, 70, 77, 80, 87, 90, 97, 100]),
        ("30 steps or 50 steps after 45 steps", [46, 76]),
    ],
)
def test_due_steps(text, steps):
    assert due_at(text) == steps


def test_a_counter_that_jumps_over_a_multiple_is_due_once():
    assert due_at("10 steps", steps=[7, 14, 19, 45, 50, 51]) == [14, 45, 50]


@pytest.mark.parametrize(
    ("text", "per_epoch", "steps"),
    [
        ("0.07 epochs", 100, [7, 14, 21, 28]),
        ("0.29 epochs", 100, [29]),
        ("0.1 epochs", 7, [1, 2, 3, 4, 5, 6, 7]),
        ("0.7 epochs", 3, [3, 5, 7, 9]),
        ("1.1%", 3_000, [33]),
    ],
)
def test_fractions_are_exact(text, per_epoch, steps):
    length = Length(total_steps=3_000, steps_per_epoch=per_epoch)
    upto = range(1, 35) if per_epoch >= 100 else range(1, 10 if per_epoch == 3 else 8)
    assert due_at(text, upto, length, per_epoch) == steps


def test_the_last_step_counts_as_the_end_of_its_epoch():
    engine = engine_of("1 epoch", Length(14, 10))
    assert engine.after_step(Progress(10, 1, 0)).checkpoint
    assert engine.after_step(Progress(14, 2, 0)).checkpoint


def test_time_that_passes_during_an_evaluation_is_not_lost():
    rules = Rules((RULE,), (), CadenceRule.parse("10 minutes"), CadenceRule.parse("10 minutes"))
    engine = RuleEngine(rules, Facts({}, ("dev",), LENGTH))
    assert not engine.after_step(at(5, elapsed=500.0)).evaluate
    assert engine.after_evaluation(Observation(at(5, elapsed=700.0, evaluation=1))).checkpoint
    assert engine.next_elapsed == 600.0
    due = engine.after_step(at(6, elapsed=701.0))
    assert due.evaluate
    assert not due.checkpoint


def test_what_fired_last_is_part_of_the_state():
    engine = engine_of("40 steps or 1 hour")
    assert engine.after_step(at(40)).checkpoint
    state = json.loads(json.dumps(engine.state()))
    resumed = engine_of("40 steps or 1 hour")
    resumed.restore(state)
    assert [step for step in range(41, 101) if resumed.after_step(at(step)).checkpoint] == [80]


def test_next_step_and_next_elapsed():
    assert (engine_of("30 steps").next_step, engine_of("30 steps").next_elapsed) == (30, math.inf)
    assert (engine_of("10 minutes").next_step, engine_of("10 minutes").next_elapsed) == (None, 600.0)
    assert (engine_of("1 epoch").next_step, engine_of("1 epoch").next_elapsed) == (None, math.inf)
    assert engine_of("100 samples").next_step == 25
    assert engine_of("100 samples", Length()).next_step == 1
    assert engine_of("1e300 hours").next_elapsed == pytest.approx(3.6e303)
    assert engine_of("1e308 hours").next_elapsed == math.inf


def test_an_empty_training_divides_by_nothing():
    engine = engine_of("10% or 0.5 epochs", Length(0, 0))
    assert not engine.after_step(Progress()).checkpoint


ALL = ["3 steps", "1 epoch", "2 epochs", "0.3 epochs", "7%", "9 samples", "2 evaluations", "40 seconds"]


@pytest.mark.parametrize(
    "after", [None, "15 steps", "2 epochs", "1.3 epochs", "21%", "70 samples", "2 evals", "100 seconds"]
)
def test_asking_seldom_finds_the_same(after):
    texts = [*ALL, *map(" or ".join, itertools.combinations_with_replacement(ALL, 2))]
    for text in texts:
        text = text if after is None else f"{text} after {after}"
        always, seldom = engine_of(text), engine_of(text)
        for step in range(1, 51):
            samples = 3 * step + step // 2
            here = at(step, samples=samples, evaluation=(step - 1) // 6, elapsed=6.0 * step)
            due = always.after_step(here).checkpoint
            told = seldom.next_step is not None and step >= seldom.next_step
            asked = told or here.step_in_epoch == 0 or here.elapsed >= seldom.next_elapsed
            assert due == (asked and seldom.after_step(here).checkpoint), (text, step)
            if step % 6 == 0:
                evaluated = Observation(at(step, samples=samples, evaluation=step // 6, elapsed=6.0 * step + 2.0))
                assert always.after_evaluation(evaluated).checkpoint == seldom.after_evaluation(evaluated).checkpoint


@pytest.mark.parametrize(
    ("text", "never"),
    [
        ("100 steps", False),
        ("101 steps", True),
        ("10 epochs", False),
        ("11 epochs", True),
        ("11 epochs or 101 steps", True),
        ("11 epochs or 50 steps", False),
        ("10.5 epochs", True),
        ("100%", False),
        ("101%", True),
        ("400 samples", False),
        ("401 samples", True),
        ("1000 evaluations", False),
        ("1000 hours", False),
        ("11 epochs or 1000 hours", False),
        ("1 epoch after 100%", True),
        ("1 epoch after 95%", False),
        ("6 epochs after 60 steps", True),
        ("6 epochs after 59 steps", False),
        ("1 step after 10 epochs", True),
        ("1 step after 1000 hours", False),
        ("1 step or 1 epoch after 100 steps", True),
        ("1 step or 1 epoch after 99 steps", False),
    ],
)
def test_a_cadence_that_never_comes_due_is_warned_of(text, never):
    rule = CadenceRule.parse(text)
    assert never_due(rule.cadence, LENGTH) == never
    assert not never_due(rule.cadence, Length())
    warnings = check(Rules((RULE,), checkpoint=rule), Facts({}, ("dev",), LENGTH))
    assert [warning.message for warning in warnings] == ["this never comes due"] * never
    if never and "or" not in text.replace("hours", ""):
        assert due_at(text) == []


def test_the_warning_says_how_long_the_training_is():
    [warning] = check(Rules((RULE,), checkpoint=CadenceRule.parse("11 epochs")), Facts({}, ("dev",), LENGTH))
    assert str(warning) == "\n".join(
        ["this never comes due", "    11 epochs", "    ^^^^^^^^^", "  the training has 100 steps in 10 epochs"]
    )


def test_one_cadence_given_for_both_is_judged_for_each():
    cadence = CadenceRule.parse("2 epochs")
    assert check(Rules((RULE,), (), cadence, cadence), Facts({}, ("dev",), LENGTH)) == []

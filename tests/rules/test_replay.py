"""Replay: the same engine over what was recorded, and what a history cannot tell."""

import dataclasses
import json
import math

import pytest

from accmt.rules import (
    CadenceRule,
    Decision,
    Facts,
    Length,
    Observation,
    Progress,
    Reported,
    RuleEngine,
    Rules,
    SavingRule,
    Stop,
    StopCondition,
    check,
)
from accmt.rules.replay import History, asked_late, replay, unanswerable

FACTS = Facts(
    {"accuracy": Reported(("dev",), True), "valid_loss": Reported(("dev",), False)}, ("dev",), Length(60, 10, 4)
)


def observed(*values, every=10, initial=False):
    """An observation every so many steps, of epochs of 10 steps."""
    observations = []
    if initial:
        observations.append(Observation(Progress(), {"dev": {"accuracy": 0.99, "valid_loss": 0.0}}, initial=True))
    for number, value in enumerate(values, 1):
        epoch, rest = divmod(number * every, 10)
        progress = Progress(number * every, epoch, rest, number, number * every * 4, float(number))
        observations.append(Observation(progress, {"dev": {"accuracy": value, "valid_loss": 1 - value}}, 1 - value))
    return tuple(observations)


def rules_of(*savings, stop_when=(), checkpoint=None, patience=None):
    return Rules(
        tuple(SavingRule.parse(text, patience=patience) for text in savings),
        tuple(StopCondition.parse(text) for text in stop_when),
        checkpoint=None if checkpoint is None else CadenceRule.parse(checkpoint),
    )


def decided(rules, history, facts=FACTS):
    check(rules, facts)
    return replay(rules, facts, history)


def test_the_engine_decides():
    rules = rules_of("accuracy keep 2", "best_avg(valid_loss, 2) by 0.01")
    observations = observed(0.5, math.nan, 0.7, 0.6, initial=True)
    engine = RuleEngine(rules, FACTS)
    assert decided(rules, History(observations)) == [engine.after_evaluation(each) for each in observations]


def test_it_goes_no_further_than_a_stop():
    decisions = decided(rules_of("accuracy", patience=1), History(observed(0.5, 0.4, 0.9)))
    assert [decision.progress.evaluation for decision in decisions] == [1, 2]
    assert decisions[-1].stop.asked_by == "best_accuracy"


def test_nothing_recorded():
    assert decided(rules_of("accuracy"), History(())) == []


@pytest.mark.parametrize(
    ("condition", "step"),
    [
        ("step > 13", 14),
        ("13 < step", 14),
        ("step * 2 >= 27", 14),
        ("epoch >= 3", 30),
        ("step > 25%", 16),
        ("evaluation >= 2", 20),
        ("evaluation >= 1 and step > 11", 12),
        ("step - 10 * epoch > 6", 7),
        ("step > 13 or accuracy > 0.45", 14),
        ("elapsed > 1.5 seconds", 20),
        ("train_loss < 0.55", 20),
    ],
)
def test_conditions_on_counters_are_asked_at_every_step(condition, step):
    rules = rules_of("accuracy", stop_when=[condition])
    decisions = decided(rules, History(observed(0.4, 0.5, 0.6, 0.7)))
    assert decisions[-1].stop is not None
    assert decisions[-1].progress.step == step
    assert decisions[-1].stop.asked_by == str(rules.stop_when[0].condition)


def test_the_end_of_the_last_epoch_counts():
    facts = dataclasses.replace(FACTS, length=Length(8, 5, 4))
    rules = rules_of("accuracy", stop_when=["epoch > 1"])
    last = Observation(Progress(8, 2, 0, 1), {"dev": {"accuracy": 0.5}})
    decisions = decided(rules, History((last,)), facts)
    assert [(d.progress.step, d.stop is not None) for d in decisions] == [(8, True), (8, True)]


def stop_at(step, condition):
    stop = Stop(condition, f"the condition '{condition}' holds")
    return Decision(Progress(step, step // 10, step % 10, step // 10, step * 4, step / 10), stop=stop)


def test_a_recorded_stop_between_evaluations_is_decided_again():
    recorded = stop_at(17, "train_loss < 0.3")
    history = History(observed(0.5, 0.6), (recorded,))
    assert decided(rules_of("accuracy", stop_when=["train_loss<0.3"]), history)[1:] == [recorded]
    assert len(decided(rules_of("accuracy", stop_when=["train_loss < 0.2"]), history)) == 2


def test_a_recorded_stop_after_the_last_evaluation():
    recorded = stop_at(27, "train_loss < 0.3")
    history = History(observed(0.5, 0.6), (recorded,))
    decisions = decided(rules_of("accuracy", stop_when=["train_loss < 0.3"]), history)
    assert [decision.progress.step for decision in decisions] == [10, 20, 27]


def test_the_evaluation_that_follows_a_stop_belongs_to_it():
    recorded = stop_at(20, "train_loss < 0.3")
    history = History(observed(0.5, 0.6, 0.7), (recorded,))
    decisions = decided(rules_of("accuracy", stop_when=["train_loss < 0.3"]), history)
    assert [(decision.progress.step, len(decision.verdicts)) for decision in decisions] == [(10, 1), (20, 0), (20, 1)]


def step_by_step(rules, observations):
    """What a training decides that asks at every step."""
    engine, decisions, evaluation = RuleEngine(rules, FACTS), [], 0
    by_step = {observation.progress.step: observation for observation in observations}
    for step in range(1, 61):
        progress = Progress(step, step // 10, step % 10, evaluation, step * 4, float(evaluation))
        engine.after_step(progress)
        if step in by_step:
            decisions.append(engine.after_evaluation(by_step[step]))
            evaluation += 1
    return decisions


@pytest.mark.parametrize(
    "cadence",
    [
        "epoch",
        "2 evaluations",
        "3 evaluations or 15 steps",
        "2 evaluations or 7 steps",
        "5 evaluations or 20%",
        "3 evaluations or 2 epochs",
        "2 evaluations after 12 steps",
    ],
)
@pytest.mark.parametrize("every", [3, 5, 10])
def test_checkpoints_after_evaluations(cadence, every):
    rules, observations = rules_of("accuracy", checkpoint=cadence), observed(*[0.5] * (60 // every), every=every)
    assert decided(rules, History(observations)) == step_by_step(rules, observations)


def test_what_a_history_lacks():
    rules = rules_of(
        "accuracy if elapsed > 1 hour after 2 hours", "train_loss after 3 epochs", stop_when=["step > 10% or epoch > 2"]
    )
    reasons = {"elapsed": "no clock", "train_loss": "no loss", "epoch": "no epochs", "length": "no end"}
    assert [(p.message.split("'")[1], p.allowed) for p in unanswerable(rules, reasons)] == [
        ("elapsed", "no clock"),
        ("train_loss", "no loss"),
        ("3 epochs", "no epochs"),
        ("10%", "no end"),
        ("epoch", "no epochs"),
    ]
    assert unanswerable(rules, {}) == []
    assert unanswerable(rules, {"samples": "none", "steps_per_epoch": "none"}) == []


def test_what_is_asked_late():
    rules = rules_of("accuracy", stop_when=["step > 3", "train_loss < 1", "elapsed > 1 hour", "stalled(accuracy, 2)"])
    late = asked_late(rules, History(()), None)
    assert [stop.text for stop in late] == ["train_loss < 1", "elapsed > 1 hour"]
    assert asked_late(rules, History(()), rules) == ()


def test_a_stop_that_the_script_asked_for_ends_nothing_that_was_recorded_after_it():
    asked = stop_at(17, "trainer.stop")
    decisions = decided(rules_of("accuracy"), History(observed(0.5, 0.6, 0.7), (asked,)))
    assert [decision.progress.step for decision in decisions] == [10, 17, 20, 30]
    assert decisions[1] == asked


def test_training_metrics_are_decided_again():
    facts = dataclasses.replace(FACTS, training={"kl": False})
    observations = tuple(
        dataclasses.replace(observation, training={"kl": kl})
        for observation, kl in zip(observed(0.5, 0.6, 0.7), (0.3, 0.4, 0.2), strict=True)
    )
    again = tuple(Observation.from_json(json.loads(json.dumps(each.to_json()))) for each in observations)
    assert again == observations
    decisions = decided(rules_of("kl", stop_when=["kl < 0.25"]), History(again), facts)
    assert [len(decision.saved) for decision in decisions] == [1, 0, 1]
    assert decisions[-1].stop.asked_by == "kl < 0.25"
    assert [stop.text for stop in asked_late(rules_of("kl", stop_when=["kl < 1"]), History(again), None)] == ["kl < 1"]

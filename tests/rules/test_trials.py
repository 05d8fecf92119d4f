"""Trials of rules on a recorded training: what they save, and what they lose."""

import math

import pytest

from accmt.rules import Facts, Observation, Progress, Reported, Rules, SavingRule, StopCondition, check
from accmt.rules.replay import History
from accmt.rules.trials import best_of_all, pareto, tried

FACTS = Facts({"accuracy": Reported(("dev",), True), "valid_loss": Reported(("dev",), False)}, ("dev",))


def history(*values):
    return History(
        tuple(
            Observation(Progress(10 * n, n, 0, n, elapsed=2.0 * n), {"dev": {"accuracy": value, "valid_loss": -value}})
            for n, value in enumerate(values, 1)
        )
    )


def trial(text, *values, patience=None, stop_when=()):
    rule = SavingRule.parse(text, patience=patience)
    stops = tuple(map(StopCondition.parse, stop_when))
    rules = Rules((rule,), stops)
    check(rules, FACTS)
    return tried(rules, FACTS, history(*values), [best_of_all(rule, FACTS, history(*values))])[0]


def test_patience_saves_steps_and_loses_what_came_later():
    found = trial("best_accuracy", 0.5, 0.4, 0.3, 0.75, 0.7, patience=2)
    assert (found.end.step, found.best.values, found.saved, found.saved_time) == (30, (0.5,), 0.4, 0.4)
    assert found.lost == (0.25,)
    assert found.stop.stop.reason == "best_accuracy has not improved for 2 evaluations"


def test_a_lower_value_that_is_better_loses_the_other_way():
    assert trial("best_valid_loss", 0.5, 0.4, 0.75, patience=1).lost == (0.25,)


def test_nothing_is_lost_without_patience():
    found = trial("best_accuracy", 0.5, 0.4, 0.75)
    assert (found.saved, found.lost, found.stop) == (0, (0,), None)


def test_by_loses_what_it_does_not_save():
    assert trial("best_accuracy by 0.5", 0.25, 0.5, 0.625).lost == (0.375,)


def test_a_stop_condition_ends_it():
    assert trial("best_accuracy", 0.5, 0.6, 0.75, stop_when=["accuracy > 0.55"]).end.step == 20


def test_a_rule_that_saves_nothing_loses_nothing_that_can_be_said():
    found = trial("best_accuracy if accuracy > 1", 0.5, 0.6)
    assert (found.best, found.lost) == (None, ())


def test_time_that_was_not_recorded_is_nan():
    rules = Rules((SavingRule.parse("accuracy", patience=1),))
    seen = History(tuple(Observation(Progress(n, n, 0, n), {"dev": {"accuracy": 1.0}}) for n in (1, 2, 3)))
    assert math.isnan(tried(rules, FACTS, seen, [None])[0].saved_time)


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(0.5, 0.1), (0.4, 0.2), (0.6, 0.2)], [True, False, True]),
        ([(0.5, 0.1), (0.5, 0.1)], [True, True]),
        ([(0.5, math.nan), (0.1, 0.3)], [False, True]),
        ([], []),
    ],
)
def test_the_pareto_front(points, front):
    assert pareto(points) == front

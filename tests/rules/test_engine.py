"""The engine where scripts do not reach: resumes under changed rules, stops, what is written, what explains itself."""

import json
import math
import pickle

import pytest

from accmt.rules import (
    CadenceRule,
    Decision,
    Facts,
    Length,
    Observation,
    Outcome,
    Progress,
    Reported,
    RuleEngine,
    RuleError,
    Rules,
    SavingRule,
    StopCondition,
    assign_patience,
    check,
)
from accmt.rules.evaluator import mean

BOTH = ("dev", "test")
FACTS = Facts({"acc": Reported(BOTH, True), "valid_loss": Reported(BOTH, False)}, BOTH, Length(1_000, 10))
NAN = math.nan


def engine_of(*texts, stop_when=(), **options):
    rules = Rules(tuple(SavingRule.parse(t, **options) for t in texts), tuple(map(StopCondition.parse, stop_when)))
    check(rules, FACTS)
    return RuleEngine(rules, FACTS)


def seen(number, value=NAN, loss=NAN, **more):
    """One evaluation at the end of an epoch, with one accuracy and one loss for both datasets."""
    values = {dataset: {"acc": value, "valid_loss": loss} for dataset in BOTH}
    return Observation(Progress(10 * number, number, 0, number), values, **more)


def resumed(before, after):
    """The notes of an engine that takes up the state of another."""
    return after.restore(json.loads(json.dumps(before.state(), allow_nan=False)))


class TestResume:
    def test_an_unchanged_rule_goes_on(self):
        before, after = engine_of("acc", patience=2), engine_of("acc", patience=2)
        before.after_evaluation(seen(1, 0.5))
        assert resumed(before, after) == []
        assert after.after_evaluation(seen(2, 0.4)).verdicts[0].reason == "0.4 is not better than 0.5"
        assert after.patience_left() == {"best_acc": 1}

    def test_new_changed_and_removed_rules_are_named(self):
        before = engine_of("acc", "valid_loss", "acc@dev")
        before.after_evaluation(seen(1, 0.5, 0.5))
        after = engine_of("acc", "valid_loss keep 2", "acc@test")
        assert resumed(before, after) == [
            "the rule 'best_valid_loss' has changed: it starts fresh",
            "the rule 'best_acc@test' is new: it starts fresh",
            "the rule 'best_acc@dev' is gone: what it remembered is dropped",
        ]
        verdicts = after.after_evaluation(seen(2, 0.4, 0.9)).verdicts
        assert [verdict.outcome for verdict in verdicts] == [Outcome.NOT_BETTER, Outcome.SAVED, Outcome.SAVED]

    def test_a_changed_limit_is_a_changed_rule_and_a_changed_patience_is_not(self):
        before = engine_of("acc", saving_above=-math.inf, patience=1)
        before.after_evaluation(seen(1, 0.5))
        before.after_evaluation(seen(2, 0.5))
        assert resumed(before, engine_of("acc", saving_above=0.1)) == [
            "the rule 'best_acc' has changed: it starts fresh"
        ]
        more_patient = engine_of("acc", saving_above=-math.inf, patience=3)
        assert resumed(before, more_patient) == [
            "the patience of 'best_acc' was 1 and is 3: the evaluations without improvement count"
        ]
        assert more_patient.patience_left() == {"best_acc": 2}
        assert more_patient.standing_stop(Progress(20)) is None
        as_patient = engine_of("acc", saving_above=-math.inf, patience=1)
        resumed(before, as_patient)
        assert as_patient.standing_stop(Progress(20)).asked_by == "best_acc"

    def test_an_engine_that_was_used_is_overwritten(self):
        before, after = engine_of("avg(acc, 2)"), engine_of("avg(acc, 2)")
        before.after_evaluation(seen(1, 0.5))
        for number in (1, 2, 3):
            after.after_evaluation(seen(number, 0.9))
        resumed(before, after)
        assert after.state() == before.state()

    def test_functions_over_time_stand_at_once(self):
        condition = ["stalled(acc, 1)", "best(acc) < 0.1", "not avg(acc, 2) > 0"]
        before, after = engine_of("acc", stop_when=condition), engine_of("acc", stop_when=condition)
        before.after_evaluation(seen(1, 0.5))
        resumed(before, after)
        assert after.standing_stop(Progress(10)) is None
        before.after_evaluation(seen(2, 0.5))
        resumed(before, after)
        assert after.standing_stop(Progress(20)).asked_by == "stalled(acc, 1)"

    def test_a_cadence_that_a_resume_brings_counts_from_there(self):
        rule = (SavingRule.parse("acc"),)
        before = RuleEngine(Rules(rule), FACTS)
        before.after_step(Progress(30, 3, 0))
        before.after_evaluation(seen(3, 0.5))
        for text, due in (("20 steps", 40), ("25 steps or 9 hours", 55), ("2 epochs", 40)):
            after = RuleEngine(Rules(rule, (), CadenceRule.parse(text), CadenceRule.parse(text)), FACTS)
            resumed(before, after)
            moments = [Progress(step, step // 10, step % 10, 3) for step in range(31, 60)]
            assert next(at.step for at in moments if after.after_step(at).evaluate) == due

    def test_a_state_of_another_format_is_refused(self):
        with pytest.raises(ValueError, match="has the format 7, not 1"):
            engine_of("acc").restore({"schema": 7})


class TestStops:
    def test_nothing_stands_before_the_first_evaluation(self):
        engine = engine_of("acc", stop_when=["acc is nan", "not acc > 0", "stalled(acc, 1)"])
        assert engine.standing_stop(Progress()) is None
        assert engine.after_evaluation(seen(1, NAN)).stop.asked_by == "acc is nan"

    def test_only_counters_and_the_training_loss_are_asked_at_logging(self):
        engine = engine_of("acc", stop_when=["acc > 0.5", "train_loss < 0.1", "stalled(train_loss, 1)", "step >= 70%"])
        engine.after_evaluation(seen(1, 0.4, train_loss=0.5))
        assert engine.after_logging(Progress(15), 0.2) is None
        assert engine.after_logging(Progress(15), 0.05).reason == "the condition 'train_loss < 0.1' holds"
        assert engine.after_logging(Progress(700), NAN).asked_by == "step >= 70%"

    def test_the_loss_at_logging_is_that_of_the_interval(self):
        engine = engine_of("acc", stop_when=["train_loss is nan"])
        assert engine.after_evaluation(seen(1, 0.4, train_loss=0.5)).stop is None
        assert engine.after_logging(Progress(15), NAN).asked_by == "train_loss is nan"
        assert engine.standing_stop(Progress(15)) is None

    def test_all_patient_rules_must_have_run_out(self):
        rules = (
            SavingRule.parse("acc", patience=1),
            SavingRule.parse("valid_loss", patience=2),
            SavingRule.parse("acc@dev"),
        )
        engine = RuleEngine(Rules(rules), FACTS)
        assert engine.after_evaluation(seen(1, 0.5, 0.5)).stop is None
        assert engine.after_evaluation(seen(2, 0.5, 0.5)).stop is None
        stop = engine.after_evaluation(seen(3, 0.5, 0.5)).stop
        assert stop.asked_by == "best_acc, best_valid_loss"
        assert stop.reason == (
            "best_acc has not improved for 1 evaluation; best_valid_loss has not improved for 2 evaluations"
        )
        assert engine.patience_left() == {"best_acc": 0, "best_valid_loss": 0, "best_acc@dev": -1}

    def test_patience_that_ran_out_comes_back_with_an_improvement(self):
        rules = (SavingRule.parse("acc", patience=1), SavingRule.parse("valid_loss", patience=9))
        engine = RuleEngine(Rules(rules), FACTS)
        for number, value in enumerate([0.5, 0.5, 0.6], start=1):
            decision = engine.after_evaluation(seen(number, value, 0.5))
        assert decision.stop is None
        assert decision.verdicts[0].patience_left == 1


class TestExplanations:
    @pytest.mark.parametrize(
        ("text", "options", "values", "reason"),
        [
            ("acc", {}, [0.5], "0.5 is the first, saved"),
            ("acc", {}, [0.5, 0.6], "0.6 beats 0.5, saved"),
            ("acc", {}, [0.5, 0.5], "0.5 is no better: a tie"),
            ("acc", {}, [0.5, NAN], "acc is nan"),
            ("acc", {}, [0.5, 0.5 + 1e-12], "0.500000000001 beats 0.5, saved"),
            ("acc by 10%", {}, [0.5, 0.54], "0.54 beats 0.5, but not by more than 10%"),
            ("acc keep 2", {}, [0.5, 0.4], "0.4 is among the best 2, saved"),
            ("acc keep 2", {}, [0.5, 0.4, 0.45], "0.45 beats 0.4, saved"),
            ("acc", {"saving_above": 0.7}, [0.5], "blocked by saving_above 0.7"),
            ("acc", {"saving_below": 0.5}, [0.5], "blocked by saving_below 0.5"),
            ("acc if step > 5000", {}, [0.5], "blocked by if step > 5000"),
            ("acc after 1 epoch", {}, [0.5], "blocked by after 1 epoch"),
            ("acc if " + " or ".join(["step > 5000"] * 9), {}, [0.5], "blocked by its condition"),
            ("acc/valid_loss", {}, [0.5, 0.6], "(0.6, 0.1) beats (0.5, 0.1), saved"),
            ("valid_loss/acc", {}, [0.5, 0.4], "acc: 0.4 is worse than 0.5"),
        ],
    )
    def test_reason(self, text, options, values, reason):
        engine = engine_of(text, **options)
        for number, value in enumerate(values, start=1):
            [verdict] = engine.after_evaluation(seen(number, value, 0.1)).verdicts
        assert verdict.reason == reason
        assert str(verdict) == f"{verdict.rule}: {reason}"

    def test_the_evaluation_before_the_first_step_decides_nothing(self):
        engine = engine_of("acc", "best(valid_loss)", stop_when=["acc > 0.1"], patience=1)
        decision = engine.after_evaluation(Observation(Progress(), {"dev": {"acc": 0.9}}, initial=True))
        assert [verdict.outcome for verdict in decision.verdicts] == [Outcome.INACTIVE] * 2
        assert (decision.saved, decision.stop, decision.checkpoint) == ((), None, False)
        assert engine.state() == engine_of("acc", "best(valid_loss)", stop_when=["acc > 0.1"], patience=1).state()

    def test_kept_models_are_listed_best_first(self):
        engine = engine_of("acc keep 3")
        for number, value in enumerate([0.5, 0.7, 0.6, 0.65], start=1):
            [verdict] = engine.after_evaluation(seen(number, value)).verdicts
        assert [(kept.values, kept.folder) for kept in verdict.kept] == [
            ((0.7,), "evaluation-0002-step-20"),
            ((0.65,), "evaluation-0004-step-40"),
            ((0.6,), "evaluation-0003-step-30"),
        ]


class TestWriting:
    def test_a_decision_equals_what_is_read_back(self):
        engine = engine_of("acc/valid_loss keep 2", patience=1, stop_when=["acc is nan"])
        for number, value in enumerate([0.5, NAN, math.inf, -math.inf], start=1):
            decision = engine.after_evaluation(seen(number, value, value))
            text = json.dumps(decision.to_json(), allow_nan=False)
            assert Decision.from_json(json.loads(text)) == decision
            assert hash(Decision.from_json(json.loads(text))) == hash(decision)
            assert pickle.loads(pickle.dumps(decision)) == decision
        assert decision != engine.after_evaluation(seen(9, 0.1, 0.2))

    def test_an_observation_equals_what_is_read_back(self):
        for observation in (
            seen(1, NAN, math.inf),
            seen(2, 1, -math.inf, train_loss=0.5, initial=True),
            Observation(Progress()),
        ):
            assert Observation.from_json(json.loads(json.dumps(observation.to_json(), allow_nan=False))) == observation
        assert seen(1, NAN) != seen(2, NAN)
        assert seen(1) != "seen"

    def test_a_text_that_is_no_number_is_refused(self):
        with pytest.raises(ValueError, match="'NaN' is not a number"):
            Observation.from_json({**seen(1).to_json(), "train_loss": "NaN"})


class TestArithmetic:
    def test_the_mean_depends_on_no_order(self):
        values = [1e16, 1.0, -1e16, 0.1, 0.2, 0.3]
        assert mean(values) == mean(sorted(values)) == mean(values[::-1]) == pytest.approx(1.6 / 6)
        assert mean([0.1] * 10) == 0.1

    def test_what_no_mean_can_hold(self):
        assert math.isnan(mean([]))
        assert math.isnan(mean([1.0, NAN]))
        assert math.isnan(mean([math.inf, -math.inf]))
        assert mean([math.inf, 1.0]) == math.inf
        assert mean([1.7e308] * 3) == math.inf

    def test_a_mean_over_datasets_is_the_same_after_a_resume_in_another_order(self):
        facts = Facts({"acc": Reported(tuple("abc"), True)}, tuple("abc"))
        rules = Rules((SavingRule.parse("acc"),))
        before, after = RuleEngine(rules, facts), RuleEngine(rules, facts)
        before.after_evaluation(
            Observation(Progress(1), {k: {"acc": v} for k, v in zip("cba", [0.3, 0.2, 0.1], strict=True)})
        )
        after.restore(json.loads(json.dumps(before.state(), sort_keys=True)))
        again = Observation(Progress(2), {})
        assert after.after_evaluation(again) == before.after_evaluation(again)

    def test_an_average_of_weight_one_forgets_an_infinity(self):
        engine = engine_of("ema(acc, 1)")
        for number, value in enumerate([-math.inf, 0.5], start=1):
            [verdict] = engine.after_evaluation(seen(number, value)).verdicts
        assert verdict.values == (0.5,)

    def test_quantities_in_conditions_are_exact(self):
        facts = Facts({}, ("dev",), Length(3_000, 100))
        rules = Rules((SavingRule.parse("train_loss"),), (StopCondition.parse("step >= 1.1%"),))
        engine = RuleEngine(rules, facts)
        assert engine.after_logging(Progress(32), 0.5) is None
        assert engine.after_logging(Progress(33), 0.5) is not None


class TestDirections:
    @pytest.mark.parametrize(
        "text",
        ["max(best(acc))", "max(avg(acc + valid_loss, 3))", "acc if avg(acc + valid_loss, 2) > 0", "min(lowest(acc))"],
    )
    def test_what_needs_no_direction_asks_for_none(self, text):
        assert engine_of(text).after_evaluation(seen(1, 0.5, 0.5)).saved

    def test_unchecked_rules_do_not_run(self):
        with pytest.raises(ValueError, match="has no direction: check the rules before they run"):
            RuleEngine(Rules((SavingRule.parse("unheard_of"),)), FACTS)


class TestPatience:
    RULES = (SavingRule.parse("acc"), SavingRule.parse("valid_loss", patience=7), SavingRule.parse("acc", name="other"))

    def test_one_for_all_goes_behind_what_was_registered(self):
        assert [rule.patience for rule in assign_patience(self.RULES, 3)] == [3, 7, 3]
        assert [rule.patience for rule in assign_patience(self.RULES, None)] == [None, 7, None]

    @pytest.mark.parametrize("key", ["acc", "best_acc", " best_acc ", '"acc"', "acc keep 3"])
    def test_keys_are_parsed(self, key):
        assert [rule.patience for rule in assign_patience(self.RULES, {key: 3, "other": 4})] == [3, 7, 4]

    def test_a_key_that_is_no_rule(self):
        with pytest.raises(RuleError, match="patience is given for 'f1', which is no rule"):
            assign_patience(self.RULES, {"f1": 3})


def test_rules_of_one_patience_are_named_together():
    facts = Facts({"valid_loss": Reported(("dev",), False), "acc": Reported(("dev",), True)}, ("dev",))
    rules = (SavingRule.parse("acc", patience=1), SavingRule.parse("best_valid_loss", patience=1))
    named = SavingRule.parse("acc@dev", patience=1, name="both")
    for more, reason in (
        ((), "best_acc and best_valid_loss have"),
        ((named,), "best_acc, best_valid_loss and 'both' have"),
    ):
        engine = RuleEngine(Rules((*rules, *more)), facts)
        for number in (1, 2):
            progress = Progress(step=number, evaluation=number)
            decision = engine.after_evaluation(Observation(progress, {"dev": {"acc": 0.5, "valid_loss": 0.5}}))
        assert decision.stop.reason == f"{reason} not improved for 1 evaluation"


@pytest.mark.parametrize(
    ("rule", "average", "reason"),
    [
        ("acc", (0.8, 0.1), "0.8 beats 0.7, saved"),
        ("acc", (0.7, 0.1), "0.7 is no better: a tie"),
        ("acc", (0.65, 0.1), "0.65 is not better than 0.7"),
        ("acc", (NAN, 0.1), "acc is nan"),
        ("acc by 0.2", (0.8, 0.1), "0.8 beats 0.7, but not by more than 0.2"),
        ("acc then valid_loss", (0.7, 0.05), "(0.7, 0.05) beats (0.7, 0.1), saved"),
        ("acc/valid_loss", (0.8, 0.2), "valid_loss: 0.2 is worse than 0.1"),
        ("acc if valid_loss < 0.3 and epoch < 9", (0.8, 0.3), "blocked by if valid_loss < 0.3 and epoch < 9"),
    ],
)
def test_the_average_of_the_kept_models_is_judged_against_the_best_of_them(rule, average, reason):
    engine = engine_of(f"{rule} keep 4 average")
    for number, values in enumerate([(0.3, 0.25), (0.5, 0.2), (0.7, 0.1)], start=1):
        engine.after_evaluation(seen(number, *values))
    before = engine.state()
    name = engine.rules.savings[0].name
    verdict = engine.judge_average(name, seen(3, *average))
    assert verdict.reason == f"average of {len(verdict.kept)} models: {reason}"
    assert verdict.kept == engine.states[name].kept
    assert engine.state() == before
    decision = Decision(Progress(30, 3, 0, 3), average=verdict)
    assert Decision.from_json(json.loads(json.dumps(decision.to_json(), allow_nan=False))) == decision
    assert resumed(engine, engine_of(f"{rule} keep 4")) == []

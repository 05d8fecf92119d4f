"""Rules in standard errors where scripts do not reach: what they need, resumes, what is recorded."""

import json
import math

import pytest

from accmt.rules import (
    Facts,
    KeptModel,
    Observation,
    Outcome,
    Progress,
    RecordedReplicates,
    Reported,
    RuleEngine,
    RuleError,
    Rules,
    SavingRule,
    check,
    replicated,
    with_replicates,
)
from accmt.rules.describe import in_words
from accmt.rules.replay import History, replay, unanswerable

BOTH = ("dev", "test")
FACTS = Facts(
    {
        "acc": Reported(BOTH, True),
        "f1": Reported(("test",), True),
        "valid_loss": Reported(BOTH, False, "a batch has one loss"),
    },
    BOTH,
    training={"kl": False},
)


def rules_of(*texts, **options):
    return Rules(tuple(SavingRule.parse(text, **options) for text in texts))


def engine_of(*texts, **options):
    rules = rules_of(*texts, **options)
    check(rules, FACTS)
    return RuleEngine(rules, FACTS)


def seen(number, value, spread=0.02, count=8):
    """One evaluation on both datasets, whose replicates are independent of those of the others."""
    signs = [(-1) ** (number & r).bit_count() for r in range(count)]
    replicates = {dataset: {"acc": tuple(value + sign * spread for sign in signs)} for dataset in BOTH}
    values = {dataset: {"acc": value} for dataset in BOTH}
    return Observation(Progress(10 * number, number, 0, number), values, replicates=replicates if count else {})


def resumed(before, after):
    """The notes of an engine that takes up the state of another."""
    return after.restore(json.loads(json.dumps(before.state(), allow_nan=False)))


def reasons(engine, *observations):
    return [str(verdict) for seen in observations for verdict in engine.after_evaluation(seen).verdicts]


class TestNeeds:
    @pytest.mark.parametrize(
        ("text", "needed"),
        [
            ("acc@dev/f1", {}),
            ("acc@dev/f1 by 2%", {}),
            ("acc@dev/f1 by 2 se", {"acc": {"dev"}, "f1": {"test"}}),
            ("acc - 0.5 * acc@test by 2se", {"acc": {"dev", "test"}}),
            ("avg(worst(acc@*), 2) by 1 se if valid_loss < 3 and f1 > 0", {"acc": {"dev", "test"}}),
        ],
    )
    def test_only_objectives_of_rules_in_standard_errors_need_replicates(self, text, needed):
        assert replicated(rules_of(text), FACTS) == needed

    def test_the_rules_of_a_training_need_them_together(self):
        rules = rules_of("acc@dev by 2 se", "acc@test by 1 se", "valid_loss")
        assert replicated(rules, FACTS) == {"acc": {"dev", "test"}}

    def test_metrics_without_replicates_are_refused(self):
        with pytest.raises(RuleError) as error:
            engine_of("acc/valid_loss/kl then min(acc - train_loss) by 2 se if valid_loss < 3")
        assert (
            str(error.value)
            == """\
'valid_loss' has no standard error, which 'by 2 se' needs
    acc/valid_loss/kl then min(acc - train_loss) by 2 se if valid_loss < 3
        ^^^^^^^^^^
  a batch has one loss: write an amount, such as by 0.01 or by 1%

'kl' has no standard error, which 'by 2 se' needs
    acc/valid_loss/kl then min(acc - train_loss) by 2 se if valid_loss < 3
                   ^^
  it is not computed from samples of a dataset: write an amount, such as by 0.01 or by 1%

'train_loss' has no standard error, which 'by 2 se' needs
    acc/valid_loss/kl then min(acc - train_loss) by 2 se if valid_loss < 3
                                     ^^^^^^^^^^
  it is not computed from samples of a dataset: write an amount, such as by 0.01 or by 1%"""
        )

    def test_a_ranking_of_counters_is_refused(self):
        with pytest.raises(RuleError) as error:
            engine_of("max(step) by 2 se")
        assert (
            str(error.value)
            == """\
nothing here has a standard error
    max(step) by 2 se
                 ^^^^
  a counter is exact: write an amount, such as by 0.01 or by 1%"""
        )

    def test_in_words(self):
        [rule] = rules_of("acc by 2 se").savings
        assert in_words(rule, FACTS) == (
            "saves when acc is higher than at its last save, by more than 2 standard errors of the difference"
        )

    def test_a_history_without_replicates_cannot_answer(self):
        rules = rules_of("acc", "acc@dev by 2 se")
        [problem] = unanswerable(rules, {"replicates": "run.csv has no replicates"})
        assert (
            str(problem)
            == """\
'2 se' needs the standard error of a difference, which is not known here
    acc@dev by 2 se
               ^^^^
  run.csv has no replicates"""
        )


class TestResume:
    TEXTS = ("acc by 2 se", "avg(acc, 2) by 2 se keep 2", "acc@dev/acc@test by 0.5 se", "max(ema(acc, 0.5)) by 1 se")

    def test_what_is_decided_is_the_same_at_every_cut(self):
        history = [seen(n, v) for n, v in enumerate((0.5, 0.52, 0.6, 0.61, math.nan, 0.7, 0.71), 1)]
        whole = engine_of(*self.TEXTS, patience=3)
        expected = [whole.after_evaluation(observation) for observation in history]
        assert {verdict.outcome for decision in expected for verdict in decision.verdicts} >= {
            Outcome.SAVED,
            Outcome.NOT_BETTER,
            Outcome.NAN,
        }
        for cut in range(len(history)):
            before, after = engine_of(*self.TEXTS, patience=3), engine_of(*self.TEXTS, patience=3)
            for observation in history[:cut]:
                before.after_evaluation(observation)
            assert resumed(before, after) == []
            assert after.state() == before.state()
            assert [after.after_evaluation(observation) for observation in history[cut:]] == expected[cut:]

    def test_another_amount_is_another_rule(self):
        before, after = engine_of("acc by 0.01"), engine_of("acc by 2 se")
        before.after_evaluation(seen(1, 0.5, count=0))
        assert resumed(before, after) == ["the rule 'best_acc' has changed: it starts fresh"]
        assert reasons(after, seen(2, 0.4), seen(3, 0.41)) == [
            "best_acc: 0.4 is the first, saved",
            "best_acc: 0.41 beats 0.4 by 0.3 se, not by more than 2 se",
        ]

    def test_a_function_over_time_without_former_replicates_starts_fresh(self):
        before, after = engine_of("avg(acc, 2)"), engine_of("avg(acc, 2) by 2 se")
        before.after_evaluation(seen(1, 0.5))
        assert resumed(before, after) == [
            "the rule 'best_avg(acc, 2)' has changed: it starts fresh",
            "'avg(acc, 2)' has no replicates of former evaluations: it starts fresh",
        ]
        assert reasons(after, seen(2, 0.4)) == ["best_avg(acc, 2): 0.4 is the first, saved"]

    def test_replicates_of_another_number_are_not_compared(self):
        before, after = engine_of("acc by 2 se"), engine_of("acc by 2 se")
        before.after_evaluation(seen(1, 0.5))
        resumed(before, after)
        assert reasons(after, seen(2, 0.9, count=4)) == [
            "best_acc: 0.9 beats 0.5, but their difference has no standard error: they have 4 and 8 replicates"
        ]

    def test_replicates_of_another_number_of_objectives_are_refused(self):
        engine = engine_of("acc by 2 se")
        engine.after_evaluation(seen(1, 0.5))
        state = engine.state()
        state["rules"]["best_acc"]["replicates"]["1"].append([0.5])
        with pytest.raises(ValueError, match="what 'best_acc' remembers are not the values of 1 objectives"):
            engine_of("acc by 2 se").restore(state)


class TestKeptModels:
    def test_a_saving_that_fails_leaves_the_replicates_of_the_model_before(self):
        engine = engine_of("acc by 2 se")
        engine.after_evaluation(seen(1, 0.5))
        engine.undo_saving(engine.after_evaluation(seen(2, 0.6)), "best_acc", "the disk is full")
        assert reasons(engine, seen(3, 0.51), seen(4, 0.59)) == [
            "best_acc: 0.51 beats 0.5 by 0.3 se, not by more than 2 se",
            "best_acc: 0.59 beats 0.5 by 3.0 se, saved",
        ]

    def test_a_model_that_is_gone_is_forgotten_with_its_replicates(self):
        engine = engine_of("acc by 2 se keep 2")
        engine.after_evaluation(seen(1, 0.5))
        kept = engine.after_evaluation(seen(2, 0.6)).verdicts[0].kept
        assert set(engine.state()["rules"]["best_acc"]["replicates"]) == {"1", "2", "best"}
        engine.keep_only("best_acc", kept[:1])
        assert set(engine.state()["rules"]["best_acc"]["replicates"]) == {"2", "best"}


class TestRecords:
    def test_neither_history_nor_decisions_have_replicates(self):
        plain, careful = engine_of("acc keep 2"), engine_of("acc by 2 se keep 2")
        assert seen(1, 0.5).to_json() == seen(1, 0.5, count=0).to_json()
        first, second = (engine.after_evaluation(seen(1, 0.5)).to_json() for engine in (plain, careful))
        assert first == second

    def test_a_replay_decides_as_the_training_did(self):
        rules, history = rules_of("acc by 2 se", patience=2), [seen(n, 0.5 + n / 20) for n in range(1, 9)]
        engine = RuleEngine(rules, FACTS)
        decisions = [engine.after_evaluation(observation) for observation in history]
        lines = [
            json.dumps(RecordedReplicates(seen.progress.evaluation, seen.replicates).to_json()) for seen in history
        ]
        read = [Observation.from_json(json.loads(json.dumps(observation.to_json()))) for observation in history]
        again = with_replicates(read, [RecordedReplicates.from_json(json.loads(line)) for line in lines])
        assert replay(rules, FACTS, History(again)) == decisions

    def test_only_replicates_that_the_rules_need_are_remembered(self):
        engine = engine_of("acc@dev by 2 se")
        engine.after_evaluation(seen(1, 0.5))
        assert set(engine.state()["store"]["replicates"]["acc"]) == {"dev"}
        engine = engine_of("acc@dev")
        engine.after_evaluation(seen(1, 0.5))
        assert "replicates" not in json.dumps(engine.state())

    def test_the_evaluation_before_the_first_step_has_none(self):
        initial = Observation(Progress(), {"dev": {"acc": 0.9}}, initial=True)
        [alone] = with_replicates([initial], [RecordedReplicates(0, {"dev": {"acc": (0.9,)}})])
        assert alone.replicates == {}

    def test_a_kept_model_is_written_as_before(self):
        assert set(KeptModel((0.5,), 1, 10).to_json()) == {"values", "evaluation", "step"}

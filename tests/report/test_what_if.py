"""Rules that a training did not have, on its report."""

from accmt.report.what_if import supposed
from accmt.rules import Facts, Observation, Progress, Reported, Rules, SavingRule, StopCondition
from accmt.rules.replay import History

FACTS = Facts({"accuracy": Reported(("dev",), True)}, ("dev",))


def history(*values, elapsed=60.0):
    return History(
        tuple(
            Observation(Progress(10 * n, n, 0, n, elapsed=elapsed * n), {"dev": {"accuracy": value}})
            for n, value in enumerate(values, 1)
        )
    )


def cards(*texts, values, patience=None, stop_when=(), elapsed=60.0):
    rules = tuple(SavingRule.parse(text, patience=patience) for text in texts)
    stops = tuple(map(StopCondition.parse, stop_when))
    return list(supposed(Rules(rules, stops, writes=False), FACTS, history(*values, elapsed=elapsed)))


def test_what_it_saves_and_loses():
    [card] = cards("best_accuracy", values=(0.5, 0.25, 0.5, 0.4, 0.75), patience=2)
    assert card.name == "what if: best_accuracy, patience 2"
    assert card.effect == (
        "It would have stopped after epoch 3 (step 30): 40% fewer steps, 2 min (40%) less time. Its model: accuracy "
        "0.25 worse than the best of the whole training."
    )
    assert (card.values, card.best.evaluation, len(card.verdicts), card.folder, card.code) == ((0.5,), 1, 3, "", "")


def test_a_time_that_is_unknown_is_not_said():
    [card] = cards("best_accuracy", values=(0.5, 0.25, 0.75), patience=1, elapsed=0.0)
    assert card.effect.startswith("It would have stopped after epoch 2 (step 20): 33% fewer steps. ")


def test_nothing_lost_and_nothing_saved():
    [card] = cards("best_accuracy", values=(0.5, 0.75))
    assert card.effect == "It would not have stopped earlier. Its model: the best of the whole training."
    [card] = cards("best_accuracy if accuracy > 1", values=(0.5, 0.75))
    assert card.effect == "It would not have stopped earlier. It would have saved no model."


def test_a_stop_at_the_end_is_not_earlier():
    [card] = cards("best_accuracy", values=(0.5, 0.75, 0.5), patience=1)
    assert card.effect == "It would not have stopped earlier. Its model: the best of the whole training."


def test_rules_stop_together():
    patient, other = cards("best_accuracy", "best_avg(accuracy, 2)", values=(0.5, 0.6, 0.55, 0.6, 0.9), patience=1)
    assert patient.verdicts[-1][0].step == other.verdicts[-1][0].step == 40


def test_a_condition_stops_them():
    [card] = cards("best_accuracy", values=(0.5, 0.75, 0.8), stop_when=["accuracy > 0.7"])
    assert card.effect.startswith("It would have stopped after epoch 2 (step 20)")

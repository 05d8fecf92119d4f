"""The table of decisions says what was decided, and why."""

import math
from io import StringIO

import pytest
from rich.console import Console

from accmt.display.tables import decision_table
from accmt.rules import Decision, Outcome, Progress, Stop, Verdict


def lines_of(table, width=160):
    file = StringIO()
    Console(file=file, width=width).print(table)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def words_of(table):
    """The cells of each row, by the two spaces between columns."""
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines_of(table)[2:]]


def verdict(rule, outcome, *values, reason="why"):
    return Verdict(rule, values, None, outcome, reason)


DECISIONS = [
    Decision(
        Progress(step=10, epoch=1, evaluation=1),
        (
            verdict("best_accuracy", Outcome.SAVED, 0.9, reason="the first"),
            verdict("best_f1", Outcome.BLOCKED, 0.123456789, 12.0, reason="accuracy > 0.95 does not hold"),
        ),
    ),
    Decision(
        Progress(step=20, epoch=2, evaluation=2),
        (
            verdict("best_accuracy", Outcome.NAN, math.nan, reason="it is nan"),
            verdict("best_f1", Outcome.NOT_BETTER, -math.inf, reason="0.9 is better"),
        ),
        stop=Stop("patience", "best_f1 has run out of patience"),
    ),
    Decision(Progress(step=25, epoch=2, evaluation=2), stop=Stop("stop_when", "elapsed > 1h holds")),
]


def test_decisions():
    assert lines_of(decision_table(DECISIONS))[0] == "Decisions"
    assert lines_of(decision_table(DECISIONS))[1].split() == (
        ["evaluation", "step", "epoch", "rule", "values", "verdict", "why"]
    )
    assert words_of(decision_table(DECISIONS)) == [
        ["1", "10", "1", "best_accuracy", "0.9", "saved", "the first"],
        ["best_f1", "0.123457, 12", "blocked", "accuracy > 0.95 does not hold"],
        ["2", "20", "2", "best_accuracy", "nan", "nan", "it is nan"],
        ["best_f1", "-inf", "not better", "0.9 is better"],
        ["stop", "best_f1 has run out of patience"],
        ["2", "25", "2", "stop", "elapsed > 1h holds"],
    ]


def test_decisions_of_one_rule():
    assert words_of(decision_table(DECISIONS, "best_f1")) == [
        ["1", "10", "1", "best_f1", "0.123457, 12", "blocked", "accuracy > 0.95 does not hold"],
        ["2", "20", "2", "best_f1", "-inf", "not better", "0.9 is better"],
        ["stop", "best_f1 has run out of patience"],
        ["2", "25", "2", "stop", "elapsed > 1h holds"],
    ]


def test_nothing_was_decided():
    assert lines_of(decision_table([]))[0] == "Decisions"
    assert words_of(decision_table([])) == []


def test_long_texts_are_folded_and_not_cut():
    reason = "word " * 60
    decisions = [Decision(Progress(), (verdict("best_f1", Outcome.SAVED, 1.0, reason=reason),))]
    assert " ".join(lines_of(decision_table(decisions), 80)).count("word") == 60


def test_names_with_brackets_are_no_markup():
    decisions = [
        Decision(Progress(), (verdict("best_f1[macro]@[dev]", Outcome.SAVED, 1.0, reason="[bold] is better"),))
    ]
    assert words_of(decision_table(decisions)) == [
        ["0", "0", "0", "best_f1[macro]@[dev]", "1", "saved", "[bold] is better"]
    ]


@pytest.mark.parametrize("width", [30, 50, 80, 160])
def test_no_width_breaks_words_or_numbers(width):
    reason = "(0.803912, 0.82) beats (0.721202, 0.711185), saved"
    verdicts = (verdict("best_accuracy@dev/f1@test", Outcome.SAVED, 0.803912, 0.82, reason=reason),)
    decisions = [
        Decision(Progress(step=1200, epoch=3, evaluation=12), verdicts, stop=Stop("patience", "no patience left"))
    ]
    lines = lines_of(decision_table(decisions), width)
    assert max(map(len, lines)) <= width
    words = " ".join(lines).replace(",", "").split()
    expected = f"evaluation step epoch 12 1200 3 {verdicts[0].rule} 0.803912 0.82 saved stop no patience left {reason}"
    assert set(expected.replace(",", "").split()) <= set(words)


def test_a_narrow_terminal_has_a_block_for_each_evaluation():
    assert lines_of(decision_table(DECISIONS[:1]), 50) == [
        "Decisions",
        "evaluation 1, step 10, epoch 1",
        "  best_accuracy  0.9  saved  the first",
        "  best_f1  0.123457, 12  blocked  accuracy > 0.95",
        "  does not hold",
    ]

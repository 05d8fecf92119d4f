"""Names and folders, warnings, and texts that mean harm."""

import re
import time

import pytest

from accmt.rules import (
    CadenceRule,
    Facts,
    Length,
    Reported,
    RuleError,
    Rules,
    SavingRule,
    StopCondition,
    canonical_name,
    check,
    nodes,
    parse_cadence,
    parse_condition,
    parse_saving,
)

FACTS = Facts({"acc": Reported(("a", "b"), True), "loss": Reported(("a",), False)}, ("a", "b"), Length(100, 10))


def rules(*texts, **more):
    return Rules(tuple(map(SavingRule.parse, texts)), **more)


@pytest.mark.parametrize(
    ("text", "name", "folder"),
    [
        ("accuracy", "best_accuracy", "best_accuracy"),
        ("best_accuracy", "best_accuracy", "best_accuracy"),
        ("best_(accuracy)", "best_accuracy", "best_accuracy"),
        ("accuracy @ dev@ test", "best_accuracy@dev@test", "best_accuracy@dev@test"),
        ("accuracy@*", "best_accuracy@*", "best_accuracy@%2A"),
        ("accuracy@1/f1", "best_accuracy@1/f1", "best_accuracy@1__f1"),
        ("accuracy@dev  /f1 keep 3", "best_accuracy@dev/f1", "best_accuracy@dev__f1"),
        ("a then b", "best_a then b", "best_a%20then%20b"),
        ("1  -  accuracy", "best_1 - accuracy", "best_1%20-%20accuracy"),
        ("((a + b) - c)", "best_a + b - c", "best_a%20+%20b%20-%20c"),
        ("a + (b - c)", "best_a + (b - c)", "best_a%20+%20(b%20-%20c)"),
        ("(a * b) * (c)", "best_a * b * c", "best_a%20%2A%20b%20%2A%20c"),
        ("0.50 * worst( a )", "best_0.5 * worst(a)", "best_0.5%20%2A%20worst(a)"),
        ("avg(a,3)", "best_avg(a, 3)", "best_avg(a,%203)"),
        ('"accuracy"', "best_accuracy", "best_accuracy"),
        ("'my set'@\"dev\"", 'best_"my set"@dev', "best_%22my%20set%22@dev"),
        ('accuracy@"../../etc"', 'best_accuracy@"../../etc"', "best_accuracy@%22..__..__etc%22"),
        (r'"a\b:c|d"', r'best_"a\b:c|d"', "best_%22a%5Cb%3Ac%7Cd%22"),
        ("'a\"b'", "best_'a\"b'", "best_%27a%22b%27"),
        ("préçision@données", "best_préçision@données", "best_préçision@données"),
        ('"best_x"', 'best_"best_x"', "best_%22best_x%22"),
        ('"epoch"', 'best_"epoch"', "best_%22epoch%22"),
        ('accuracy@"if"', 'best_accuracy@"if"', "best_accuracy@%22if%22"),
        ("worst(accuracy@*)", "best_worst(accuracy@*)", "best_worst(accuracy@%2A)"),
    ],
)
def test_name_and_folder(text, name, folder):
    rule = SavingRule.parse(text)
    assert (rule.name, rule.folder) == (name, folder)
    assert SavingRule.parse(name).name == name
    assert canonical_name(text) == name
    assert re.fullmatch(r"best_[\w.@+(),%-]*", rule.folder)


def test_a_name_of_its_own_is_used_as_it_is():
    rule = SavingRule.parse("accuracy/f1", name="Best-model.v2")
    assert (rule.name, rule.folder) == ("Best-model.v2", "Best-model.v2")


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\\b", "a b", "a" * 101, "checkpoints", "ä\n", 3])
def test_what_is_no_name(name):
    with pytest.raises(RuleError, match="is not a name for a rule"):
        SavingRule.parse("accuracy", name=name)


def test_a_folder_name_that_no_disk_takes():
    wide = Facts({"精" * 90: Reported(("a",), True)}, ("a",))
    with pytest.raises(RuleError, match="95 characters, 275 bytes"):
        check(rules("精" * 90), wide)
    assert check(Rules((SavingRule.parse("精" * 90, name="wide"),)), wide) == []


def test_words_of_the_language_can_be_names_in_quotes():
    names = [*nodes.RESERVED, *nodes.COUNTERS, "best_x", "my metric", "recall@10", "3gram", "it's"]
    facts = Facts({name: Reported(tuple(names), True) for name in names}, tuple(names))
    for name in names:
        quoted = f'"{name}"'
        assert check(rules(f"best_{quoted}@{quoted} if {quoted} > 0.5"), facts) == []


@pytest.mark.parametrize(
    ("condition", "always"),
    [
        ("1 < 2", "true"),
        ("2 * 3 == 7", "false"),
        ("not 1 < 2", "false"),
        ("acc > 0.5 and 1 > 2", "false"),
        ("acc > 0.5 or 1 < 2 or step > 3", "true"),
        ("1 < 2 and 2 < 3", "true"),
        ("1 is nan", "false"),
        ("acc > 0.5 or 1 > 2", None),
        ("not acc > 0.5", None),
        ("step > 3", None),
    ],
)
def test_a_condition_that_never_changes_is_warned_of(condition, always):
    texts = [f"acc if {condition}", condition]
    warnings = check(rules(texts[0], stop_when=(StopCondition.parse(texts[1]),)), FACTS)
    answers = [] if always is None else [f"it is always {always}"] * 2
    assert [warning.allowed for warning in warnings] == answers


@pytest.mark.parametrize(
    ("after", "warned"), [("99 steps", 0), ("100 steps", 1), ("10 epochs", 1), ("100%", 1), ("9 hours", 0)]
)
def test_a_rule_that_never_saves_is_warned_of(after, warned):
    warnings = check(rules(f"acc after {after}"), FACTS)
    assert [warning.message for warning in warnings] == ["this rule never saves"] * warned


def test_per_cent_of_the_epochs_needs_both_lengths():
    with pytest.raises(RuleError, match="a part of an epoch needs the number of its steps"):
        check(rules("acc if epoch > 50%"), Facts(FACTS.metrics, FACTS.datasets, Length(100)))


def test_whole_and_broken_epochs_in_conditions_need_no_length():
    assert check(rules("acc if epoch > 2 epochs or epoch > 0.5 epochs"), Facts(FACTS.metrics, FACTS.datasets)) == []


HOSTILE = {
    "a megabyte": "a" * 1_000_000,
    "a megabyte of nothing": " " * 1_000_000,
    "deep": "(" * 10_000 + "acc" + ")" * 10_000,
    "deep and short": "(" * 400 + "acc" + ")" * 400,
    "not not": "not " * 200 + "acc > 1",
    "nots in parentheses": "not (" * 150 + "acc > 1",
    "powers": "9**9**9",
    "a large number": "acc > " + "9" * 900,
    "a larger number": "acc > 1e999999999",
    "a tiny number": "1e-999999 epochs",
    "a long window": "avg(acc, 1e300)",
    "quotes": '"' * 999,
    "blanks": "acc" + " " * 900 + "#",
    "digits": "1" * 990 + "x",
    "dots": "a" + ".-" * 490,
    "format": "acc@{here} {0.__class__} %s %(x)s",
    "control": "acc\x00\x1b[31m",
    "half a character": 'acc@"\ud800"',
    "code": "__import__('os').system('true')",
    "units": "1 step or " * 90 + "1 stp",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_text_costs_little_and_harms_nothing(text):
    SavingRule.parse("accuracy")
    for parse in (
        parse_saving,
        parse_condition,
        parse_cadence,
        SavingRule.parse,
        StopCondition.parse,
        CadenceRule.parse,
    ):
        start = time.perf_counter()
        try:
            parse(text)
        except RuleError as error:
            assert len(str(error)) < 5_000, "the answer is no flood"  # noqa: PT017
        assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    "text", ["(" * 64 + "acc" + ")" * 64, "not " * 64 + "acc > 1", "not (" * 32 + "acc > 1" + ")" * 32]
)
def test_64_levels_are_not_too_deep(text):
    assert StopCondition.parse(text if "not" in text else f"{text} > 1")
    with pytest.raises(RuleError, match="nests at most 64 levels deep"):
        StopCondition.parse(f"({text} > 1)" if "not" not in text else f"not {text}")


def test_a_thousand_characters_are_not_too_many():
    assert SavingRule.parse("acc".ljust(1_000))
    with pytest.raises(RuleError, match="at most 1,000 characters, this one has 1,001"):
        SavingRule.parse("acc".ljust(1_001))


def test_a_thousand_unknown_names_are_answered_fast():
    metrics = {f"metric{number}": Reported(tuple("ab"), True) for number in range(50)}
    facts = Facts(metrics, ("a", "b"))
    slowest = 0.0
    for number in range(1_000):
        rule = rules(f"mtric{number}x@c{number}")
        start = time.perf_counter()
        with pytest.raises(RuleError, match="unknown metric"):
            check(rule, facts)
        slowest = max(slowest, time.perf_counter() - start)
    assert slowest < 1


def test_a_rule_of_a_thousand_mistakes_is_answered_fast():
    texts = [f"m{number}@x{number}/" * 60 + "y" for number in range(20)]
    start = time.perf_counter()
    with pytest.raises(RuleError, match="and 2,400 problems more") as error:
        check(rules(*texts), FACTS)
    assert len(error.value.problems) == 2_440
    assert len(str(error.value)) < 20_000
    assert time.perf_counter() - start < 5

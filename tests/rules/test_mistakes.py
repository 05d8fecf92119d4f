"""What a mistake is answered with, word for word: the examples in tests/cases/*.mistakes, and mistakes beside a text.

An example is a line `> kind text` and the whole answer below it; several problems of one text follow each other.
"""

import re
from pathlib import Path

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
    assign_patience,
    check,
)

CASES = Path(__file__).parent.parent / "cases"
BOTH = ("dev", "test")
METRICS = {
    "accuracy": Reported(BOTH, True),
    "f1": Reported(("test",), True),
    "score": Reported(BOTH, None),
    "recall@10": Reported(BOTH, True),
    "valid_loss": Reported(BOTH, False),
}
FACTS = Facts(METRICS, BOTH, Length(100, 10))
UNSIZED = Facts(METRICS, BOTH)
BLIND = Facts()
APART = FACTS.holding_out(["test"])


def examples():
    blocks = [b for path in sorted(CASES.glob("*.mistakes")) for b in path.read_text(encoding="utf-8").split("\n\n")]
    for block in blocks:
        if block.startswith("#"):
            continue
        first, *answer = block.splitlines()
        kind, _, given = first.removeprefix("> ").partition(" ")
        yield pytest.param(kind, given, answer, id=first.removeprefix("> "))


def check_one(text, facts):
    check(Rules((SavingRule.parse(text),)), facts)


def check_cadence(role, text, facts):
    check(Rules((SavingRule.parse("train_loss"),), **{role: CadenceRule.parse(text)}), facts)


USES = {
    "rule": SavingRule.parse,
    "condition": StopCondition.parse,
    "cadence": CadenceRule.parse,
    "check": lambda text: check_one(text, FACTS),
    "check-unsized": lambda text: check_one(text, UNSIZED),
    "check-apart": lambda text: check_one(text, APART),
    "check-blind": lambda text: check_one(text, BLIND),
    "check-evaluate": lambda text: check_cadence("evaluate", text, FACTS),
    "check-blind-checkpoint": lambda text: check_cadence("checkpoint", text, BLIND),
}


@pytest.mark.parametrize(("kind", "text", "answer"), list(examples()))
def test_mistake_in_a_text(kind, text, answer):
    with pytest.raises(RuleError) as error:
        USES[kind](text)
    assert [line for line in str(error.value).splitlines() if line] == answer


def patience(given, *texts):
    return lambda: assign_patience(tuple(SavingRule.parse(text) for text in texts), given)


def register(*texts, **options):
    return lambda: check(Rules(tuple(SavingRule.parse(text, **options) for text in texts)), FACTS)


BESIDE = [
    (
        patience({"best_acuracy": 2}, "accuracy", "f1@test"),
        """patience is given for 'best_acuracy', which is no rule
  the rules of this training: best_accuracy, best_f1@test
  did you mean 'best_accuracy'?""",
    ),
    (
        patience({"accuracy": 2, "best_accuracy": 3}, "accuracy"),
        """patience is given twice for 'best_accuracy'
  once as 'best_accuracy'""",
    ),
    (
        patience({"accuracy": 0}, "accuracy"),
        """the patience of 'accuracy' is 0
  a whole number from 1 belongs there""",
    ),
    (
        patience({3: 2, "f1": 1.5}, "accuracy", "f1"),
        """patience is given for 3, which is no rule
  the rules of this training: best_accuracy, best_f1

the patience of 'f1' is 1.5
  a whole number from 1 belongs there""",
    ),
    (
        patience(True, "accuracy"),
        """the patience is True
  a whole number from 1 belongs there""",
    ),
    (
        register("accuracy", "best_accuracy keep 3"),
        """the rule 'best_accuracy' is registered twice
  give one of them a name: name=...""",
    ),
    (
        register("accuracy@dev", "accuracy@DEV"),
        """the rules 'best_accuracy@dev' and 'best_accuracy@DEV' would save into one folder, 'best_accuracy@DEV'
  give one of them a name: name=...

unknown dataset 'DEV'
    accuracy@DEV
             ^^^
  the datasets are: dev, test
  did you mean 'dev'?""",
    ),
    (
        register(" + ".join(["accuracy"] * 12)),
        """the folder of 'best_accuracy + accuracy + accuracy + accuracy + accuracy + accuracy + accuracy + accuracy + \
accuracy + accuracy + accuracy + accuracy' would have a name of 178 characters, 178 bytes
  at most 120 characters, 240 bytes: give the rule a name: name=...""",
    ),
    (
        register("accuracy", name="../../etc"),
        """'../../etc' is not a name for a rule
  letters, digits, '_', '-' and '.', not starting with '.', at most 100 characters""",
    ),
    (
        register("accuracy", name="Checkpoints"),
        """'Checkpoints' is not a name for a rule
  the files of a training have this name: choose another one""",
    ),
    (
        register("accuracy", saving_above=0.5, saving_below=0.5),
        """'accuracy' would save above 0.5 and below 0.5: no value is
  saving_above must be less than saving_below""",
    ),
    (
        register("accuracy keep 0", name="", patience=0, saving_above="0.5", saving_below=float("nan")),
        """'keep' takes a positive whole number
    accuracy keep 0
                  ^
  keep 1 is the default: only the best

'' is not a name for a rule
  letters, digits, '_', '-' and '.', not starting with '.', at most 100 characters

the patience of 'accuracy keep 0' is 0
  a whole number from 1 belongs there

the saving_below of 'accuracy keep 0' is nan
  a number belongs there

the saving_above of 'accuracy keep 0' is '0.5'
  a number belongs there""",
    ),
    (
        lambda: check(Rules((SavingRule.parse("accuracy"),) * 600, (StopCondition.parse("step > 3"),) * 401), FACTS),
        "a training has at most 1,000 rules, this one has 1,001",
    ),
    (
        lambda: SavingRule.parse("accuracy" * 200),
        "a rule has at most 1,000 characters, this one has 1,600",
    ),
]


@pytest.mark.parametrize(("act", "answer"), BESIDE)
def test_mistake_beside_the_text(act, answer):
    with pytest.raises(RuleError) as error:
        act()
    assert str(error.value) == answer


def test_a_long_text_is_shown_around_the_mistake():
    text = " + ".join(["accuracy"] * 40) + " + acuracy + " + " + ".join(["f1"] * 40)
    with pytest.raises(RuleError) as error:
        check(Rules((SavingRule.parse(text, name="long"),)), FACTS)
    _, shown, carets, *_ = str(error.value).splitlines()
    assert len(shown) <= 4 + 100 + 6
    assert shown.strip().startswith("...")
    assert shown.endswith("...")
    assert shown[carets.index("^") : carets.rindex("^") + 1] == "acuracy"


def test_carets_stand_below_wide_and_combining_characters():
    with pytest.raises(RuleError) as error:
        check_one("best_精度@dev/acuracy", FACTS)
    first, second = str(error.value).split("\n\n")
    assert first.splitlines()[2] == "         ^^^^"
    assert second.splitlines()[2] == " " * 18 + "^^^^^^^"


def test_what_would_steer_a_terminal_is_not_shown():
    for character in "\x00\x1b\x7f\ud800":
        with pytest.raises(RuleError, match=re.escape(f"U+{ord(character):04X} cannot stand in a rule")) as error:
            SavingRule.parse(f'best_"a{character}b"')
        assert character not in str(error.value)


def test_all_problems_of_all_rules_are_reported_at_once():
    rules = Rules(
        (SavingRule.parse("acuracy"), SavingRule.parse("f1@dev if f2 > 1")),
        (StopCondition.parse("acuracy > 1"),),
        CadenceRule.parse("2 evals"),
        CadenceRule.parse("10%"),
    )
    with pytest.raises(RuleError) as error:
        check(rules, UNSIZED)
    assert [problem.message for problem in error.value.problems] == [
        "unknown metric 'acuracy'",
        "'f1' is not reported on 'dev'",
        "unknown metric 'f2'",
        "unknown metric 'acuracy'",
        "evaluations cannot be counted in evaluations",
        "per cent of what? The length of this training is not known",
    ]


def test_of_many_names_only_some_are_listed():
    many = tuple(f"set{number}" for number in range(100))
    facts = Facts({f"m{number}": Reported(many, True) for number in range(50)}, many)
    with pytest.raises(RuleError) as error:
        check_one("accuracy@nowhere", facts)
    assert max(map(len, str(error.value).splitlines())) < 1_000
    assert "and 88 more" in str(error.value)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("f1_score", '"f1 score"'),
        ("val/accuracy", '"val/accuracy"'),
        ("accuracy@dev", '"dev set"'),
        ("accuracy@devset", '"dev set"'),
        ("acuracy", "accuracy"),
    ],
)
def test_a_name_that_needs_quotes_is_suggested_in_quotes(text, meant):
    names = ("f1 score", "val/accuracy", "accuracy")
    facts = Facts({name: Reported(("dev set",), True) for name in names}, ("dev set",), Length(100, 10))
    with pytest.raises(RuleError) as error:
        check_one(text, facts)
    assert error.value.problems[0].suggestion == meant
    if meant.strip('"') in names:
        check_one(meant, facts)

"""Every example of the language's page is parsed and checked, and what it says of units and mistakes is true."""

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
    check,
    nodes,
)
from accmt.rules.functions import FUNCTIONS
from accmt.rules.units import BY_SPELLING

PAGE = (Path(__file__).parents[2] / "grammar" / "README.md").read_text(encoding="utf-8")
BOTH = ("dev", "ood")
METRICS = {
    "accuracy": Reported(BOTH, True),
    "f1": Reported(("ood",), True),
    "valid_loss": Reported(BOTH, False),
}
FACTS = Facts(METRICS, BOTH, Length(10_000, 1_000, 32))
QUOTED = Facts(METRICS | {"recall@10": Reported(("my set",), True)}, ("my set", *BOTH), FACTS.length)
LISTED = Facts({"accuracy": Reported(("0", "1"), True)}, ("0", "1"), FACTS.length)


def blocks(kind):
    return [line for block in re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def examples(kind):
    return [line.partition("  #")[0].strip() for line in blocks(kind)]


def facts_of(text):
    return QUOTED if '"' in text else LISTED if "@0" in text else FACTS


@pytest.mark.parametrize("text", examples("rule"))
def test_saving_rule(text):
    assert check(Rules((SavingRule.parse(text),)), facts_of(text)) == []


@pytest.mark.parametrize("text", examples("condition"))
def test_condition(text):
    rules = Rules((SavingRule.parse("valid_loss"),), (StopCondition.parse(text),))
    assert check(rules, FACTS) == []


@pytest.mark.parametrize("text", examples("cadence"))
def test_cadence(text):
    rules = Rules((SavingRule.parse("valid_loss"),), checkpoint=CadenceRule.parse(text))
    assert check(rules, FACTS) == []


def test_there_are_examples():
    assert min(len(examples(kind)) for kind in ("rule", "condition", "cadence")) >= 6
    assert [SavingRule.parse(text).name for text in examples("rule")[2:4]] == ["best_accuracy"] * 2


def test_the_mistake_is_answered_as_shown():
    [text] = examples("mistake")
    with pytest.raises(RuleError) as error:
        check(Rules((SavingRule.parse(text),)), FACTS)
    assert str(error.value).splitlines() == blocks("text")


def test_python_examples_use_texts_that_parse():
    texts = re.findall(r'register_model_saving\("(.+?)"', PAGE)
    assert [check(Rules((SavingRule.parse(text),)), FACTS) for text in texts] == [[]] * 2
    assert [CadenceRule.parse(text) for text in re.findall(r'checkpoint_every="(.+?)"', PAGE)]


def test_every_unit_function_and_word_is_on_the_page():
    written = set(re.findall(r"[\w%]+", PAGE))
    for spelling in BY_SPELLING:
        assert {spelling, spelling.removesuffix("s")} & written, spelling
    assert set(FUNCTIONS) <= written
    assert written >= nodes.RESERVED
    assert set(nodes.COUNTERS) <= written

"""An atheris target: no bytes make the rule language do anything but answer with a node or a RuleError.

    pip install atheris
    python tests/fuzz/fuzz_rules.py [-atheris_runs=100000] [-max_total_time=60] [corpus folder]

The first byte chooses what is parsed, the rest is the text. What parses is printed and parsed again, checked against a
training, run over a few evaluations, and taken up again from its own state.
"""

import json
import math
import sys

import atheris

with atheris.instrument_imports(include=["accmt"]):
    from accmt.rules import (
        CadenceRule,
        Decision,
        Facts,
        Length,
        Observation,
        Progress,
        Reported,
        RuleEngine,
        RuleError,
        Rules,
        SavingRule,
        StopCondition,
        check,
        parse_cadence,
        parse_condition,
        parse_saving,
    )

LONGEST = 1_000
BOTH = ("dev", "test")
METRICS = {"accuracy": Reported(BOTH, True), "f1": Reported(("dev",), True), "valid_loss": Reported(BOTH, False)}
FACTS = Facts(METRICS, BOTH, Length(60, 10, 4))
DEFAULT = SavingRule.parse("train_loss")
VALUES = (0.5, math.nan, 0.75, -math.inf, math.inf, 0.25)


def one_input(data: bytes) -> None:
    """What atheris calls with bytes of its choice."""
    kind, text = data[0] % 3 if data else 0, data[1:].decode("utf-8", "surrogateescape")
    try:
        parse = (parse_saving, parse_condition, parse_cadence)[kind]
        node = parse(text)
        if len(str(node)) <= LONGEST and parse(str(node)) != node:
            raise AssertionError(f"{text!r} prints as {str(node)!r}, which is something else")
        rules = (saved, stopped, paced)[kind](text)
        check(rules, FACTS)
    except RuleError as error:
        if not str(error):
            raise AssertionError(f"{text!r} is refused without a word") from error
        return
    run(rules)


def saved(text: str) -> Rules:
    return Rules((SavingRule.parse(text, patience=2),))


def stopped(text: str) -> Rules:
    return Rules((DEFAULT,), (StopCondition.parse(text),))


def paced(text: str) -> Rules:
    return Rules((DEFAULT,), checkpoint=CadenceRule.parse(text))


def run(rules: Rules) -> None:
    engine = RuleEngine(rules, FACTS)
    for number, value in enumerate(VALUES, start=1):
        at = Progress(10 * number, number, 0, number - 1, 40 * number, 30.0 * number)
        engine.after_step(at)
        engine.after_logging(at, value)
        state = json.dumps(engine.state(), allow_nan=False, sort_keys=True)
        resumed = RuleEngine(rules, FACTS)
        resumed.restore(json.loads(state))
        values = {dataset: dict.fromkeys(METRICS, value) for dataset in BOTH}
        progress = Progress(10 * number, number, 0, number, 40 * number, 30.0 * number)
        decision = engine.after_evaluation(Observation(progress, values, value))
        if resumed.after_evaluation(Observation(progress, values, value)) != decision:
            raise AssertionError("a resumed engine decides something else")
        if Decision.from_json(json.loads(json.dumps(decision.to_json(), allow_nan=False))) != decision:
            raise AssertionError("a decision does not survive JSON")


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()

"""Runs the scripts of the language in tests/cases."""

import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("rule_script", HERE / "script.py")
script = importlib.util.module_from_spec(_spec)
sys.modules["rule_script"] = script
_spec.loader.exec_module(script)

CASES = [case for path in sorted((HERE.parent / "cases").glob("*.rule")) for case in script.read(path)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.where} {case.text}")
def test_case(case):
    saved, stopped, outcomes, reasons = [], 0, {}, {}
    for decision in case.decisions():
        number = decision.progress.evaluation
        outcomes[number] = decision.verdicts[0].outcome.value
        reasons[number] = decision.verdicts[0].reason
        saved += [number] * len(decision.saved)
        if decision.stop and not stopped:
            stopped = number
            break
    if case.saves is not None:
        assert saved == case.saves
    if case.stops is not None:
        assert stopped == case.stops
    assert {number: outcomes[number] for number in case.outcomes} == case.outcomes
    assert {number: reasons[number] for number in case.reasons} == case.reasons
    expected = (case.saves, case.stops, case.outcomes or None, case.reasons or None)
    assert expected != (None,) * 4, "the case expects nothing"


def test_there_are_cases():
    assert len(CASES) > 40

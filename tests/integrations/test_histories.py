"""Histories of tests/cases give the decisions of the engine, also through a resume at each evaluation."""

import importlib.util
import json
import sys
import warnings
from pathlib import Path

import pytest

from accmt.integrations.loop import Rules
from accmt.loop.stopwatch import Stopwatch
from accmt.rules import SavingRule

HERE = Path(__file__).parent.parent
_spec = importlib.util.spec_from_file_location("rule_script", HERE / "rules" / "script.py")
script = importlib.util.module_from_spec(_spec)
sys.modules["rule_script"] = script
_spec.loader.exec_module(script)

CASES = [case for path in sorted((HERE / "cases").glob("*.rule")) for case in script.read(path)]
DRIVEN = [case for case in CASES if not any("-" in column for column in case.series.values())]


def rules_of(case, folder):
    facts = case.facts()
    options = {key: int(value) if key == "patience" else value for key, value in case.options.items()}
    metrics = {
        name: ("max" if metric.greater_is_better else "min", metric.datasets) for name, metric in facts.metrics.items()
    }
    rules = Rules(
        folder,
        SavingRule.parse(case.text, **options),
        stop_when=case.stop_when,
        metrics=metrics,
        datasets=facts.datasets,
    )
    rules.start(total_steps=facts.length.total_steps, steps_per_epoch=case.epoch_steps)
    return rules


def values_at(case, number):
    values = {key: {} for key in case.facts().datasets}
    for measure, column in case.series.items():
        metric, _, dataset = measure.partition("@")
        if metric == "train_loss":
            continue
        for key in [dataset] if dataset else case.metrics[metric][1]:
            values[key][metric] = float(column[number])
    return values


def driven(case, folder, at, monkeypatch, *, resumes):
    """The decisions of a case, up to the first that stops."""
    rules, found = rules_of(case, folder), []
    lengths = {len(column) for column in case.series.values()}
    for number in range(max(lengths)):
        now = next(at)
        monkeypatch.setattr(Stopwatch, "elapsed", lambda self, now=now: now)
        losses = {"train_loss": float(case.series["train_loss"][number])} if "train_loss" in case.series else {}
        rules.step(step=(number + 1) * case.epoch_steps, **losses)
        decision = rules.evaluated(values_at(case, number))
        found.append(rules.save(decision, lambda folder: (folder / "weights").write_text("w")))
        if decision.stop:
            break
        if resumes:
            state = json.dumps(rules.state_dict())
            rules.close()
            rules = rules_of(case, folder)
            rules.load_state_dict(json.loads(state))
    rules.close()
    return found


@pytest.mark.parametrize("case", DRIVEN, ids=lambda case: f"{case.where} {case.text}")
def test_decisions_are_those_of_the_engine(tmp_path, monkeypatch, case):
    expected = list(case.decisions())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of NaN, and of conditions that never change
        for resumes in (False, True):
            at = iter([60.0 * number for number in range(1, len(expected) + 1)])
            found = driven(case, tmp_path / str(resumes), at, monkeypatch, resumes=resumes)
            assert len(found) == len(expected) or found[-1].stop
            for decision, right in zip(found, expected, strict=False):
                assert decision.verdicts == right.verdicts
                assert (decision.stop is None) == (right.stop is None)


def test_most_cases_are_driven():
    assert len(DRIVEN) > 40

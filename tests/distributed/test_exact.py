"""Values are those of one process over the dataset once, for every number of processes and every batch size."""

import json
from functools import cache
from pathlib import Path

import pytest
from launching import launch

SCRIPT = Path(__file__).parent / "exact.py"
DECIDING = Path(__file__).parent / "deciding.py"
IN_ORDER = ("floats", "halves", "whole", "truths", "named", "ragged", "right")

pytestmark = pytest.mark.xdist_group("processes")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Number of processes -> what each of them got."""

    @cache
    def evaluate(processes):
        file = tmp_path_factory.mktemp("exact") / "values"
        launch(SCRIPT, file, processes=processes if processes > 1 else None).check()
        return [json.loads(Path(f"{file}-{rank}.json").read_text()) for rank in range(processes)]

    return evaluate


@pytest.mark.proves("metrics.FunctionMetric(pad)", "metrics.FunctionMetric(per_sample)")
def test_values_do_not_depend_on_processes_and_batches(evaluated):
    [expected] = (found["values"] for found in evaluated(1))
    whole = expected["50"]
    for processes in (1, 2, 3):
        found = [each["values"] for each in evaluated(processes)]
        assert all(each == found[0] for each in found)
        for size, datasets in found[0].items():
            for count, metrics in datasets.items():
                where = f"{processes} processes, batches of {size}, {count} samples"
                for name in IN_ORDER:
                    assert metrics[name] == whole[count][name], f"{name}: {where}"
                for name in ("valid_loss", "mean", "accuracy", "order", "error"):
                    close = pytest.approx(whole[count][name], rel=1e-6, nan_ok=True)
                    assert metrics[name] == close, f"{name}: {where}"
    assert len({metrics["floats"] for metrics in whole.values()}) == len(whole)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_batches_that_do_not_fit_together_are_refused_by_all(evaluated, processes):
    main, *others = (found["refused"] for found in evaluated(processes))
    assert "the batches of metric 'ragged' differ in more than their number of samples" in main
    assert "(pad=...)" in main
    assert all("process 0" in text for text in others), others


def test_all_processes_decide_alike(tmp_path):
    """Over metrics drawn by chance, other ones on each process, NaN among them, and rules that look at the clock."""
    launch(DECIDING, tmp_path / "model", processes=3).check()
    first, *others = (json.loads((tmp_path / f"model-rank{rank}.json").read_text()) for rank in range(3))
    assert others == [first, first]
    decisions = first["decisions"]
    outcomes = {verdict["outcome"] for decision in decisions for verdict in decision["verdicts"]}
    assert {"saved", "not better", "nan"} <= outcomes
    assert len(decisions) > 5
    assert decisions[-1]["stop"]["asked_by"] == "elapsed > 4 seconds"
    assert first["checkpoints"] >= 2
    written = [json.loads(line) for line in (tmp_path / "model" / "decisions.jsonl").read_text().splitlines()]
    assert written == decisions

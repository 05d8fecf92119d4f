"""Limits, stops, training metrics and the last complete step on two processes: all of them do the same."""

import json
from pathlib import Path

import pytest
from launching import launch

from accmt.tracking.journal import read

SCRIPT = Path(__file__).parent / "limits.py"

pytestmark = pytest.mark.xdist_group("processes")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("limits") / "all"
    launch(SCRIPT, folder, processes=2).check()
    return folder, *(json.loads(Path(f"{folder}-rank{rank}.json").read_text()) for rank in (0, 1))


def test_all_processes_hold_the_same(ran):
    _, first, second = ran
    for results in (first, second):
        for result in results.values():
            del result["elapsed"]
    assert first == second


def test_limits_are_kept(ran):
    _, results, _ = ran
    assert results["counter"]["step"] == 7
    assert results["fast"]["step"] < 40
    assert 1 <= results["slow"]["step"] <= 5
    assert results["loss"]["step"] < 40
    assert results["loss"]["decisions"][0]["stop"]["asked_by"] == "train_loss > 0 or kl > 9"


def test_one_process_stops_all(ran):
    _, results, _ = ran
    assert 6 <= results["asked"]["step"] < 40
    assert results["asked"]["decisions"][-1]["stop"] == {"asked_by": "trainer.stop", "reason": "process 1 asks"}


def test_training_metrics_are_means_over_all_processes(ran):
    folder, _, _ = ran
    training = [line["training"] for line in read(folder / "metrics" / "history.jsonl")]
    assert training == [{"kl": 0.5, "main": 0.0, "some": 4.5}, {"kl": 0.5, "main": 0.0, "some": 14.5}]


def test_an_exception_on_all_ends_with_a_checkpoint_to_continue_from(ran):
    _, results, _ = ran
    assert results["failed"]["error"] == "as planned"
    assert results["failed"]["checkpoints"] == ["11"]
    assert results["parts"]["weights"] == results["whole"]["weights"]
    assert results["parts"]["decisions"] == results["whole"]["decisions"]

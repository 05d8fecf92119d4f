"""Several processes decide alike, by the values of the main one, which alone writes."""

import json

import pytest
from launching import launch

PROGRAM = """
import json, sys, time
from pathlib import Path

import torch.distributed as dist

from accmt.integrations.loop import Rules

folder = Path(sys.argv[1])
dist.init_process_group("gloo")
rank = dist.get_rank()
written = []


def write(place):
    written.append(rank)
    if len(written) == 2:
        raise OSError("no space")
    (place / "rank").write_text(str(rank))


with Rules(
    folder / "model", ["best_accuracy", "best_train_loss"], metrics={"accuracy": "max"}, datasets=["dev"],
    stop_when="train_loss < 0 or elapsed > 0.5 seconds", checkpoint_every="0.1 seconds", evaluate_every="50 steps",
) as rules:
    seen, step = [], 0
    while not rules.stop:
        step += 1
        time.sleep(0.002 * (1 + rank))
        due = rules.step(train_loss=1.0 + rank, samples=step)
        if due.evaluate:
            decision = rules.save(rules.evaluated({"dev": {"accuracy": (1 - 2 * rank) * step}}), write)
            seen.append([step, *(v.outcome for v in decision.verdicts)])
        if due.checkpoint:
            seen.append([step, "checkpoint"])
    state = rules.state_dict()
dist.barrier()
result = {"seen": seen, "step": step, "written": written, "best": rules.engine.states["best_accuracy"].to_json()}
(folder / f"{rank}.json").write_text(json.dumps(result))
dist.destroy_process_group()
"""


@pytest.mark.xdist_group("processes")
def test_two_processes_decide_alike(tmp_path):
    launch(PROGRAM, tmp_path, processes=2).check()
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert one["written"]
    assert other["written"] == []
    for name in ("seen", "step", "best"):
        assert one[name] == other[name]
    assert [line for line in one["seen"] if "checkpoint" in line]
    assert any("failed" in line for line in one["seen"])
    lines = (tmp_path / "model" / "history.jsonl").read_text().splitlines()
    values = [json.loads(line)["values"]["dev"]["accuracy"] for line in lines]
    assert values
    assert min(values) > 0

"""Two real processes on gloo behave as one training. (Started by torchrun itself: tests/cli/test_launching.py.)"""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from launching import launch

SCRIPT = Path(__file__).parent / "train.py"

pytestmark = pytest.mark.xdist_group("processes")


def run(folder, *pairs, processes=2, **environment):
    return launch(SCRIPT, folder, *pairs, processes=processes, environment=environment)


def outcome(folder, rank):
    return json.loads(Path(f"{folder}-rank{rank}.json").read_text())


def timeless(decisions):
    return [{key: value for key, value in decision.items() if key != "elapsed"} for decision in decisions]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two") / "whole"
    ran = run(folder, "dropout=0.2", 'checkpoint_every="3 steps"', "evaluate_every_n_steps=4", "log_every=3")
    assert ran.returncode == 0, ran.stderr
    return folder, ran


def test_all_processes_hold_the_same(whole):
    folder, _ = whole
    first, second = outcome(folder, 0), outcome(folder, 1)
    assert first == second
    assert first["steps"] == 14
    assert [decision["step"] for decision in first["decisions"]] == [4, 8, 12, 14]


def test_metrics_are_those_of_one_process(whole):
    folder, _ = whole
    metrics = outcome(folder, 0)["metrics"]
    for values in metrics.values():
        assert values["order"] == 1.0
        assert values["accuracy"] == values["same"]
        assert values["accuracy"] == pytest.approx(values["parallel"])
        assert math.isfinite(values["valid_loss"])


def test_the_saved_model_loads_on_one_process_and_reaches_its_values(whole):
    """Evaluating the saved weights by hand over the whole dataset gives the values that the rule recorded."""
    folder, _ = whole
    saving = json.loads((folder / "best_worst(accuracy)" / "saving.json").read_text())
    weights = torch.load(folder / "best_worst(accuracy)" / "pytorch_model.bin", weights_only=True)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 16), torch.nn.BatchNorm1d(16), torch.nn.Dropout(), torch.nn.Linear(16, 2)
    ).eval()
    model.load_state_dict(weights)
    accuracies = []
    for count, seed in ((22, 1), (5, 2)):
        inputs = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
        accuracies.append((model(inputs).argmax(1) == (inputs.sum(1) > 0).long()).float().mean().item())
    assert saving["values"]["worst(accuracy)"] == pytest.approx(min(accuracies))


def test_only_the_main_process_prints(whole):
    _, ran = whole
    assert ran.stdout.count("Saved models") == 1
    assert len(re.findall(r"^evaluation 1 ", ran.stdout, re.MULTILINE)) == 1
    assert ran.stderr == ""


def test_the_process_group_ends_with_the_training(whole):
    """A thread of gloo that outlives the interpreter takes the process down with SIGABRT, now and then."""
    folder, _ = whole
    for rank in (0, 1):
        threads = json.loads(Path(f"{folder}-rank{rank}-threads.json").read_text())
        assert threads
        assert not [name for name in threads if "gloo" in name]


def test_resume_is_exact(whole):
    folder, _ = whole
    cut = folder.with_name("cut")
    common = ("dropout=0.2", 'checkpoint_every="3 steps"', "evaluate_every_n_steps=4", "log_every=3")
    first = run(cut, "cut=8", *common)
    assert first.returncode != 0
    second = run(cut, "seed=5", *common)
    assert second.returncode == 0, second.stderr
    assert "continuing from checkpoint-0002-step-6" in second.stdout
    for rank in (0, 1):
        mine, expected = outcome(cut, rank), outcome(folder, rank)
        assert mine["weights"] == expected["weights"]
        assert mine["metrics"] == expected["metrics"]
        assert timeless(mine["decisions"]) == timeless(expected["decisions"])


def test_resume_of_three_processes_is_exact(tmp_path):
    """Three numbers have no exact sum that does not depend on their order."""
    common = ("width=500", "dropout=0.2", 'checkpoint_every="2 steps"')
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run(whole, *common, processes=3).returncode == 0
    assert run(cut, "cut=5", *common, processes=3).returncode != 0
    ran = run(cut, "seed=5", *common, processes=3)
    assert "continuing from checkpoint-0002-step-4" in ran.stdout, ran.stderr
    for rank in range(3):
        assert outcome(cut, rank)["weights"] == outcome(whole, rank)["weights"]


def test_another_number_of_processes_continues_and_says_so(whole):
    folder, _ = whole
    longer = run(folder, "epochs=3", "dropout=0.2", "evaluate_every_n_steps=4", processes=None)
    assert longer.returncode == 0, longer.stderr
    text = " ".join(longer.stdout.split())
    assert "the number of processes was 2 and is 1" in text


def test_streams_of_validation_data_are_exact_too(tmp_path):
    """The metric `order` is 1 only if every sample came once, in order."""
    ran = run(tmp_path / "stream", "stream=true", "epochs=1")
    assert ran.returncode == 0, ran.stderr
    for values in outcome(tmp_path / "stream", 1)["metrics"].values():
        assert values["order"] == 1.0
        assert values["accuracy"] == values["same"]


def test_evaluating_alone_gives_the_values_of_the_training(tmp_path):
    ran = run(tmp_path / "model", "again=true", "epochs=1", "destroy_after_training=false")
    assert ran.returncode == 0, ran.stderr
    for rank in (0, 1):
        again = json.loads((tmp_path / f"model-rank{rank}-again.json").read_text())
        assert again == outcome(tmp_path / "model", rank)["metrics"]


def test_time_based_rules_decide_alike(tmp_path):
    folder = tmp_path / "timed"
    ran = run(folder, 'evaluate_every="0.2 seconds"', 'stop_when="elapsed > 1.5"', "epochs=2000", "log_every=10")
    assert ran.returncode == 0, ran.stderr
    first, second = outcome(folder, 0), outcome(folder, 1)
    assert first == second
    assert first["decisions"][-1]["stop"]["asked_by"] == "elapsed > 1.5"
    assert sum(bool(decision["verdicts"]) for decision in first["decisions"]) >= 2


def test_processes_that_do_not_know_of_each_other_are_refused(tmp_path):
    ran = run(tmp_path / "apart", ACCELERATE_USE_CPU="false", CUDA_VISIBLE_DEVICES="")
    if torch.cuda.is_available():
        pytest.skip("with a GPU, Accelerate sees all processes")
    assert ran.returncode != 0
    assert "2 processes were launched, and Accelerate sees one: on CPUs, set ACCELERATE_USE_CPU=true" in ran.stderr
    assert not (tmp_path / "apart").exists()

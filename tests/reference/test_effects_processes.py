"""What arguments do where there are two processes: real ones, that train several times in one script."""

import json
from pathlib import Path

import pytest
from launching import launch

SCRIPT = Path(__file__).parent / "processes.py"

pytestmark = pytest.mark.xdist_group("processes")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of the two processes found."""
    folder = tmp_path_factory.mktemp("processes")
    launch(SCRIPT, folder, processes=2).check()
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.proves("Trainer(safe_mode)")
def test_past_the_wrapper_the_weights_are_the_same_to_rounding(ranks):
    """With `safe_mode` the module calls the wrapper, without it the bare model."""
    main, other = ranks
    assert main["safe-True"] == other["safe-True"]
    assert main["safe-False"] == other["safe-False"]
    assert main["safe-True"]["called"] == "DistributedDataParallel"
    assert main["safe-False"]["called"] == "Sequential"
    assert main["safe-False"]["weights"] == pytest.approx(main["safe-True"]["weights"], rel=1e-12, abs=1e-14)


@pytest.mark.proves("metrics.MetricParallel")
def test_a_parallel_metric_is_averaged_over_the_processes(ranks):
    """Ten samples in batches of four: process 0 has the first and the last batch, six of them, and process 1 four."""
    values, targets = ranks[0]["metrics"]["0"], ranks[0]["targets"]
    assert ranks[1]["metrics"]["0"] == values
    assert values["rank"] == pytest.approx(0.4)
    assert values["share"] == pytest.approx(sum(targets) / 10, rel=1e-5)


@pytest.mark.proves("metrics.Metric")
def test_a_metric_is_computed_on_the_main_process_from_all_samples(ranks):
    main, other = ranks
    assert (main["computed"], "computed" in other) == (3, False)  # the trial before the first step, and two evaluations
    assert main["metrics"]["0"]["samples"] == 10
    assert main["metrics"]["0"]["whole"] == pytest.approx(sum(main["targets"]) / 10, rel=1e-5)


@pytest.mark.proves("Trainer(dataloader_num_workers)")
def test_a_loader_has_as_many_workers_as_there_are_processes(ranks):
    assert [found["workers"] for found in ranks] == [[2, 2], [2, 2]]


@pytest.mark.proves("AcceleratorModule.log(values)", "AcceleratorModule.log(reduction)")
def test_a_module_logs_tensors_of_all_processes_and_numbers_of_the_main_one(ranks):
    main, other = ranks
    assert main["sent"] == [
        [step, name, value] for step in (0, 1) for name, value in (("mean", 2), ("number", 10), ("sum", 4))
    ]
    assert other["sent"] == []


@pytest.mark.proves("Trainer(destroy_after_training)")
def test_the_process_group_ends_with_a_training_unless_it_is_to_stay(ranks):
    for found in ranks:
        assert found["group after all but the last"] is True
        assert found["group after the last"] is False


def test_callbacks_run_on_every_process(ranks):
    assert [found["steps"] for found in ranks] == [2, 2]

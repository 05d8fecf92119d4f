"""Loaders that users prepared for several processes: every sample once, or an error before the first step."""

import json
from pathlib import Path

import pytest
from launching import launch

SCRIPT = Path(__file__).parent / "sharded.py"
MEAN = sum(i * i for i in range(18)) / 18
ADVICE = "give each process all of the data, in one order: the trainer shards the batches"

pytestmark = pytest.mark.xdist_group("processes")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded") / "run"
    launch(SCRIPT, folder, processes=2).check()
    return [json.loads(Path(f"{folder}-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", ["sampler", "shuffled", "batch sampler", "plain", "stream"])
def test_what_can_be_shared_out_is_read_once(found, name):
    for trains in (True, False):
        first, second = (each[f"{name} {trains}"] for each in found)
        assert "error" not in first, first
        seen = first["seen"] + second["seen"]
        assert set(seen) == set(range(18))
        assert len(seen) in (18, 20)  # a last round is filled up
        assert first["said"] == second["said"] == []
        assert (first["count"], second["count"]) == (18.0, 18.0)
        assert first["valid_loss"] == second["valid_loss"] == pytest.approx(MEAN)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("other number", "DistributedSampler shards the data across 4 processes, and there are 2: " + ADVICE),
        ("kind of its own", "Other shards the data: " + ADVICE),
        ("by rank", "the processes have different orders: " + ADVICE),
        ("batches by rank", "the processes have different numbers of batches: " + ADVICE),
        ("seeds by rank", "the processes have different orders: " + ADVICE),
        ("subset by rank", "the processes have different samples: " + ADVICE),
        ("prepared", "the loader was prepared by an Accelerator: give it as it was before"),
    ],
)
def test_what_is_sharded_already_is_refused_before_the_first_step(found, name, text):
    for each in found:
        for trains, where in ((True, "train_dataset"), (False, "val_dataset")):
            tried = each[f"{name} {trains}"]
            assert tried == {"error": f"ConfigError: 1 mistake in fit(...):\n  {where}: {text}", "seen": []}


def test_a_stream_that_is_sharded_already_is_seen_when_it_is_read(found):
    for each in found:
        alone = each["stream by rank False"]
        text = "the validation data 'valid': the processes read different samples from the stream: "
        assert alone["error"] == f"RuntimeError: {text}{ADVICE}"
        assert each["stream by rank True"]["error"] == f"RuntimeError: {text}{ADVICE}"

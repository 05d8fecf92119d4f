"""`accmt seeds`: a script once for each seed, continued when it was cut, and two sets of runs compared."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from accmt.cli.main import main

ACCMT = Path(sys.executable).with_name("accmt")
TRAINING = Path(__file__).with_name("seeded_training.py")

pytestmark = pytest.mark.xdist_group("processes")


@pytest.fixture
def start(tmp_path):
    """Arguments of `accmt seeds` -> its process."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}

    def run(*arguments):
        command = [ACCMT, "seeds", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes)

    return run


@pytest.fixture
def seeds(start):
    """Arguments of `accmt seeds` -> its status, and what it wrote."""

    def run(*arguments):
        process = start(*arguments)
        out, err = process.communicate()
        return process.returncode, out, err

    return run


@pytest.fixture
def call(capsys):
    """Arguments of `accmt seeds` -> status, stdout, stderr, in this process."""

    def run(*arguments):
        try:
            status = main(["seeds", *map(str, arguments)])
        except SystemExit as error:
            status = error.code
        return status, *capsys.readouterr()

    return run


def values_of(folder):
    return [json.loads(line)["values"] for line in (folder / "history.jsonl").read_text().splitlines()]


def test_a_failing_seed_does_not_stop_the_others_and_is_tried_again(seeds, tmp_path):
    script = tmp_path / "train.py"
    shutil.copy(TRAINING, script)
    again = ("train.py", "--seeds", "0..1", "--jobs", 2, "--", "runs")
    status, out, err = seeds(*again[:-1], "runs", "fails=1")
    assert status == 1
    assert err.splitlines()[0].startswith("seed 1: failed with status 1 after ")
    assert err.splitlines()[-1] == "  ValueError: this seed fails"
    assert out.splitlines()[-1] == "failed: seed 1. The same command tries it again"
    first = values_of(tmp_path / "runs" / "seed-0")
    output = (tmp_path / "runs" / "seed-0" / "output.log").read_text()
    assert "seed: 0 (of accmt seeds)\n" in output
    assert "writes to: runs/seed-0\n" in output

    status, out, err = seeds(*again)
    assert (status, err) == (0, "")
    second = values_of(tmp_path / "runs" / "seed-1")
    assert first != second  # although the script calls set_seed(0)
    assert out.splitlines()[-5].split() == ["runs,", "the", "best", "models", "of", "2", "seeds:"]
    assert out.splitlines()[-4].split() == ["rule", "seeds", "mean", "sd", "min", "max", "value"]
    assert out.splitlines()[-3].split()[:2] == ["best_valid_loss", "2"]
    assert out.splitlines()[-1].endswith("  accuracy@test, held out")

    shutil.rmtree(tmp_path / "runs" / "seed-1")
    status, out, err = seeds(*again)
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == "seed 0: skipped, it has finished in runs/seed-0"
    assert out.splitlines()[1].startswith("seed 1: started, its output is in .accmt-seeds/train-")
    assert values_of(tmp_path / "runs" / "seed-1") == second  # the initial weights as well


def test_an_interrupt_ends_all_with_checkpoints_and_the_next_call_resumes(start, seeds, tmp_path):
    arguments = (TRAINING, "--seeds", "0..1", "--jobs", 2, "--", "runs", "waits=go")
    process = start(*arguments)
    while not all((tmp_path / f"go-{seed}").exists() for seed in (0, 1)):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, err) == (130, "")
    assert out.splitlines()[-1] == "interrupted: 0 seeds finished. The same command continues"
    (tmp_path / "go").touch()
    status, out, err = seeds(*arguments)
    assert (status, err) == (0, "")
    assert out.count(" (resumed from step 4), runs/seed-") == 2


def test_several_processes_for_each_seed(seeds, tmp_path):
    launch = ("--cpu", "-N", 2, TRAINING, "runs")
    status, _, err = seeds("launch", "--seeds", 5, "--", *launch)
    assert (status, err) == (0, "")
    assert "seed: 5 (of accmt seeds)\n" in (tmp_path / "runs" / "seed-5" / "output.log").read_text()


def test_a_script_without_a_training(seeds, tmp_path):
    (tmp_path / "train.py").write_text("import sys\nprint(sys.argv, __name__)")
    status, _, err = seeds("train.py", "--seeds", 2, "--", "--lr", "0.1")
    assert status == 1
    assert err.splitlines()[0].startswith("seed 2: ended without a finished training after ")
    assert err.splitlines()[1] == "  ['train.py', '--lr', '0.1'] __main__"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a script, or --compare with two sets of runs"),
        ([__file__], "give the seeds, as in --seeds 0..4"),
        (
            [__file__, "--seeds", "1", "--lr", "1"],
            "unrecognized arguments: --lr 1 (the arguments of the script follow --)",
        ),
        (
            ["--compare", "a", "b", "--jobs", "2"],
            "--compare takes two folders of finished runs, and runs nothing: leave out the rest",
        ),
        (
            ["--seeds", "4..0"],
            "argument --seeds: '4..0' is not a list of seeds: write numbers from 0 to 2**31 - 1 and ranges, such as "
            "0..4 or 0,3,7",
        ),
        (["--seeds", "0..2,1"], "argument --seeds: '0..2,1' has the seed 1 more than once"),
    ],
)
def test_wrong_calls(call, arguments, said):
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1] == f"accmt seeds: error: {said}"


def test_a_script_that_is_not_there(call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    said = f"there is no script train.py (the current folder is {tmp_path})\n"
    assert call("train.py", "--seeds", "0") == (1, "", said)


@pytest.mark.parametrize("text", ["x", "-1", "4294967296"])
def test_a_seed_of_the_environment_that_is_none(monkeypatch, text):
    from accmt import set_seed

    monkeypatch.setenv("ACCMT_SEED", text)
    said = f"the environment variable ACCMT_SEED is '{text}': it must be a whole number from 0 to 2**31 - 1"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        set_seed(0)


def test_a_search_is_refused(monkeypatch):
    from accmt import ConfigError, HyperParameterSearch

    monkeypatch.setenv("ACCMT_SEED", "1")
    with pytest.raises(ConfigError) as caught:
        HyperParameterSearch(lambda: None, [0], [0])
    assert "a search does not run under accmt seeds: train its best hyperparameters there" in str(caught.value)

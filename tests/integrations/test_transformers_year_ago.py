"""The transformers of November 2025, in a folder of its own: a training is killed, resumed, and decides the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("transformers_program.py")
# That version, what else its Trainer imports where newer ones do not fit, and what those need.
PACKAGES = ("transformers==4.57.3", "huggingface_hub==0.36.0", "tokenizers==0.22.1", "datasets==4.4.1")
PACKAGES += ("httpx==0.28.1", "httpcore==1.0.9")


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    got = subprocess.run([*pip, "--target", folder, *PACKAGES], capture_output=True, text=True, check=False)
    if got.returncode:
        pytest.skip(f"not to be had from the package index: {got.stderr[-200:]}")

    def run(*words):
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        return subprocess.run([sys.executable, PROGRAM, *words], env=environment, capture_output=True, text=True)

    return run


def decided(folder):
    lines = (folder / "decisions.jsonl").read_text().splitlines()
    return [{**json.loads(line), "elapsed": 0} for line in lines]


def test_killed_and_resumed_it_decides_the_same(tmp_path, train):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(whole).returncode == 0
    assert train(cut, "kill=8").returncode == -9
    ran = train(cut, "resume", "restore")
    assert ran.returncode == 0, ran.stderr
    one, other = (decided(folder) for folder in (whole, cut))
    assert one == other
    assert len(one) == 8

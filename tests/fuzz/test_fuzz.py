"""Runs the fuzz target for seconds, with --full for a minute, where atheris is installed."""

import subprocess
import sys
from pathlib import Path

import pytest

TARGET = Path(__file__).with_name("fuzz_rules.py")
CASES = TARGET.parent.parent / "cases"
SHORT, FULL = 5, 60


def test_no_bytes_break_the_rule_language(tmp_path, full):
    asked = subprocess.run([sys.executable, "-c", "import atheris"], capture_output=True, text=True, timeout=60)
    if asked.returncode != 0:
        reason = (asked.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"atheris cannot be imported here: {reason}")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, (kind, text) in enumerate(texts()):
        (corpus / f"{number:03d}").write_bytes(kind + text.encode())
    seconds = FULL if full else SHORT
    command = [sys.executable, str(TARGET), f"-max_total_time={seconds}", "-timeout=5", "-seed=1", str(corpus)]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=seconds + 120)
    assert process.returncode == 0, process.stdout[-2_000:] + process.stderr[-4_000:]


def texts():
    """The rules and conditions of the scripts, and some cadences: what the fuzzer starts from."""
    yield from ((b"\2", text) for text in ("2 epochs", "500 steps or 10 minutes", "10% after 1 epoch", "every 0.5 ep"))
    for path in sorted(CASES.glob("*.rule")):
        for line in path.read_text(encoding="utf-8").splitlines():
            word, _, text = line.partition(" ")
            if word in ("rule", "stop_when"):
                yield b"\0" if word == "rule" else b"\1", text

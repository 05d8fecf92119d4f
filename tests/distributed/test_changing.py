"""Parts that are frozen, unfrozen or added while two processes train: both do the same, by the wrapper or by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "changing.py"

pytestmark = pytest.mark.xdist_group("processes")


def test_what_is_trained_may_change(tmp_path):
    folder = tmp_path / "all"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]
    variables = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads(Path(f"{folder}-rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    for wrapped, bare in first.values():
        assert bare == pytest.approx(wrapped, abs=1e-6)

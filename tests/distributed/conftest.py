"""Scripts on several processes of this machine, started by torchrun."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def torchrun():
    """Run a script of this folder on CPUs, in one process as it is; returns how it ended."""

    def run(script, *arguments, processes=2, **environment):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [sys.executable, *(launcher if processes > 1 else ()), Path(__file__).with_name(script), *arguments]
        variables = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **environment}
        return subprocess.run(command, capture_output=True, text=True, env=variables, check=False)

    return run


@pytest.fixture(scope="session")
def completed(torchrun):
    """Run a script like `torchrun`, and fail unless it ends well."""

    def run(script, *arguments, **options):
        ran = torchrun(script, *arguments, **options)
        assert ran.returncode == 0, ran.stderr
        return ran

    return run

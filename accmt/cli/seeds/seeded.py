"""Runs a script as Python does, after seeding all random number generators.

    python -m accmt.cli.seeds.seeded [-m] SCRIPT ...

So modules that the script constructs before `fit` depend on the seed as well.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from accmt.seed_run import seed_of_run
from accmt.seeding import set_seed


def main(arguments: Sequence[str]) -> None:
    """Run a script, or with `-m` a module, as the main program."""
    is_module = arguments[0] == "-m"
    script, *rest = arguments[is_module:]
    sys.argv = [script, *rest]
    if not sys.flags.safe_path:
        del sys.path[0]
    sys.path.insert(0, str(Path.cwd() if is_module else Path(script).resolve().parent))
    set_seed(seed_of_run() or 0)  # it is known, because nothing else starts this
    if is_module:
        runpy.run_module(script, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])

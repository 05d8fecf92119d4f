"""How long the imports of accmt take, beside those of the libraries under it.

    python benchmarks/imports.py [--rounds 10]

Each import is the only one in a fresh process and is timed inside it, so the interpreter's start does not count. All
are run once beforehand, untimed, for the bytecode and the disk's cache; every round starts with the next of them.
Prints the minimum and the median seconds of each and the differences of the minima to `import torch` and to
`import accelerate`. The accmt imported is that of this checkout.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
BASELINES = ("import torch", "import accelerate")
STATEMENTS = (*BASELINES, "import accmt", "from accmt import Trainer", "import accmt.rules")
PROGRAM = "from time import perf_counter; start = perf_counter(); {}; print('seconds', perf_counter() - start)"


def main() -> int:
    parser = argparse.ArgumentParser(description="How long the imports of accmt take.")
    parser.add_argument("--rounds", type=int, default=10, help="runs of each import (default: 10)")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")

    statements = [statement for statement in STATEMENTS if works(statement)]
    seconds: dict[str, list[float]] = {statement: [] for statement in statements}
    for round_number in range(arguments.rounds):
        first = round_number % len(statements) if statements else 0
        for statement in statements[first:] + statements[:first]:
            seconds[statement].append(time_import(statement))
    print_table(seconds)
    return 0 if len(statements) == len(STATEMENTS) else 1


def works(statement: str) -> bool:
    """Whether `statement` runs here, with a line printed if it does not."""
    try:
        time_import(statement)
    except subprocess.CalledProcessError as error:
        print(f"skipped: {statement} ({error.stderr.strip().splitlines()[-1]})")
        return False
    return True


def time_import(statement: str) -> float:
    """Seconds that `statement` takes in a fresh process."""
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(statement)],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    return float(process.stdout.split()[-1])


def print_table(seconds: dict[str, list[float]]) -> None:
    minima = {statement: min(times) for statement, times in seconds.items()}
    header = "".join(f"{'- ' + baseline:>22}" for baseline in BASELINES)
    print(f"{'seconds':<28}{'min':>8}{'median':>8}{header}")
    for statement, minimum in minima.items():
        differences = "".join(
            f"{minimum - minima[baseline]:+22.3f}" if baseline in minima else f"{'-':>22}" for baseline in BASELINES
        )
        print(f"{statement:<28}{minimum:8.3f}{statistics.median(seconds[statement]):8.3f}{differences}")


if __name__ == "__main__":
    sys.exit(main())

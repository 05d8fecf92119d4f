"""How long the start of accmt takes: its imports, beside those of the libraries under it, a first step, a command.

    python benchmarks/imports.py [--rounds 10]

Each import is the only one in a fresh process and is timed inside it, so the interpreter's start does not count. All
are run once beforehand, untimed, for the bytecode and the disk's cache; every round starts with the next of them.
Prints the minimum and the median seconds of each and the differences of the minima to `import torch` and to
`import accelerate`. The accmt imported is that of this checkout.

`first step` is the time from the import of the trainer to the end of the first optimizer step of a small training.
`accmt check` is the whole command, with the interpreter's start.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
BASELINES = ("import torch", "import accelerate")
FIRST_STEP = "first step"
COMMAND = "accmt check"
CHECK = "import sys; from accmt.cli.main import main; sys.exit(main(['check', 'best_accuracy@dev/accuracy@test']))"
TRAINING = """
import tempfile, torch
from time import perf_counter
from torch.optim.optimizer import register_optimizer_step_post_hook
from accmt import Trainer
class Stepped(Exception): pass
def stop(*_):
    print("seconds", perf_counter() - start)
    raise Stepped
register_optimizer_step_post_hook(stop)
start = perf_counter()
with tempfile.TemporaryDirectory() as folder:
    data = torch.utils.data.TensorDataset(torch.randn(1000, 64), torch.randint(0, 10, (1000,)))
    trainer = Trainer({"epochs": 1, "batch_size": 64, "optimizer": "AdamW"}, folder + "/model", quiet=True)
    try: trainer.fit(torch.nn.Linear(64, 10), data, {"dev": data}, loss_fn=torch.nn.functional.cross_entropy)
    except Stepped: pass
"""
STATEMENTS = (*BASELINES, "import accmt", "from accmt import Trainer", "import accmt.rules", FIRST_STEP, COMMAND)
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
    """Seconds that `statement`, or what has that name, takes in a fresh process."""
    programs = {FIRST_STEP: TRAINING, COMMAND: CHECK}
    start = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-c", programs.get(statement) or PROGRAM.format(statement)],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    if statement == COMMAND:
        return time.perf_counter() - start
    return float(process.stdout.partition("seconds ")[2].split()[0])


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

"""What a bigger model costs in time and memory: a loop by hand with the same fast parts, and accmt.

    python benchmarks/bigger.py [--rounds 3] [--parameters 50] [--steps 16] [--batch 16] [--ema] [--json FILE]

Every run is a fresh process with one thread on the CPU that trains a perceptron of so many million parameters with
fused AdamW, batches of 16 samples in memory and gradients clipped to a norm of 1; each round runs both contestants, in
turns. Both import the same, so that the difference in memory is that of the training.

    step      milliseconds from one optimizer step to the next: the minimum over all steps of all runs, as other work on
              the machine only ever adds time
    cpu       the same of the time that the process computes
    memory    the largest resident size, in MiB: the median over the runs

Afterwards the weights of both are compared, which must be equal bit by bit.

With `--ema` accmt also keeps a moving average of the weights, and what that takes of the computing time of its steps is
told: the minima of both, of the same runs.
"""

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
CONTESTANTS = ("by hand", "accmt")
LAYERS, CLIP, LEARNING_RATE = 4, 1.0, 1e-4
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parameters", type=int, default=50, help="millions")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16, help="samples")
    parser.add_argument("--ema", action="store_true", help="average the weights in accmt")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        print(json.dumps(measured(arguments)))
        return 0
    runs = {name: [] for name in CONTESTANTS}
    for number in range(arguments.rounds):
        for name in CONTESTANTS[:: -1 if number % 2 else 1]:
            runs[name].append(run(name, arguments))
            print(f"round {number + 1}, {name}: {runs[name][-1]}", file=sys.stderr)
    if arguments.json:
        arguments.json.write_text(json.dumps(runs, indent=1))
    print(f"{'':<10}{'step, ms':>10}{'cpu, ms':>10}{'memory, MiB':>13}")
    figures = {name: summary(done) for name, done in runs.items()}
    for name, (step, cpu, memory) in figures.items():
        print(f"{name:<10}{step:>10.2f}{cpu:>10.2f}{memory:>13.0f}")
    more = [1000 * (ours / theirs - 1) for theirs, ours in zip(*figures.values(), strict=True)]
    print(f"{'more, ‰':<10}{more[0]:>10.1f}{more[1]:>10.1f}{more[2]:>13.1f}")
    if arguments.ema:
        average, whole = min(done["average"] for done in runs["accmt"]), figures["accmt"][1]
        print(
            f"averaging the weights: {average:.2f} ms, {1000 * average / whole:.1f} ‰ of the computing time of a step"
        )
    weights = {done["weights"] for each in runs.values() for done in each}
    print("the weights are equal bit by bit" if len(weights) == 1 else "the weights differ")
    return len(weights) - 1


def summary(runs: list[dict]) -> tuple[float, float, float]:
    best = [min(done[name] for done in runs) for name in ("step", "cpu")]
    return *best, statistics.median(done["memory"] for done in runs)


def run(name: str, arguments: argparse.Namespace) -> dict:
    command = [sys.executable, __file__, "--contestant", name]
    command += ["--parameters", str(arguments.parameters), "--steps", str(arguments.steps)]
    command += ["--batch", str(arguments.batch), *["--ema"] * arguments.ema]
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(arguments: argparse.Namespace) -> dict:
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook
    from torch.utils.data import TensorDataset

    from accmt import Trainer
    from accmt.loop.moving_average import MovingAverage

    torch.set_num_threads(1)
    torch.manual_seed(0)
    width = int((arguments.parameters * 1e6 / LAYERS) ** 0.5)
    layers = [part for _ in range(LAYERS) for part in (torch.nn.Linear(width, width), torch.nn.ReLU())]
    model, samples = torch.nn.Sequential(*layers), arguments.batch * arguments.steps
    data = TensorDataset(torch.randn(samples, width), torch.randn(samples, width))
    moments, averaging, update = [], [0.0], MovingAverage.update

    def timed(*given: object) -> None:
        began = time.process_time()
        update(*given)
        averaging.append(time.process_time() - began)

    MovingAverage.update = timed
    register_optimizer_step_post_hook(lambda *_: moments.append((time.perf_counter(), time.process_time())))
    if arguments.contestant == "accmt":
        hps = {"epochs": 1, "batch_size": arguments.batch, "optimizer": {"type": "AdamW", "lr": LEARNING_RATE}}
        quiet = {"checkpoint_every": None, "disable_model_saving": True, "quiet": True}
        with tempfile.TemporaryDirectory() as folder:
            decay = 0.999 if arguments.ema else None
            trainer = Trainer(hps, folder, clip_grad=CLIP, shuffle_train=False, ema_decay=decay, **quiet)
            trainer.fit(model, data, loss_fn=torch.nn.functional.mse_loss)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
        for start in range(0, samples, arguments.batch):
            inputs, targets = data[start : start + arguments.batch]
            torch.nn.functional.mse_loss(model(inputs), targets).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
    step, cpu = (min(after - before for before, after in pairwise(row)) * 1e3 for row in zip(*moments, strict=True))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    weights = hashlib.blake2b(digest_size=8)
    for parameter in model.parameters():
        weights.update(parameter.detach().numpy())
    average = 1e3 * min(averaging[1:], default=0.0)
    return {"step": step, "cpu": cpu, "average": average, "memory": memory, "weights": weights.hexdigest()}


if __name__ == "__main__":
    sys.exit(main())

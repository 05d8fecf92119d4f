"""What a second process brings: samples per second of one training on one process and on two, and their ratio.

    python benchmarks/scaling.py [--rounds 5] [--steps 60] [--width 1024] [--batch 512] [--only torch,accelerate,accmt]

A perceptron is trained by AdamW on batches of 512 samples a process, with one thread each, on gloo: by
DistributedDataParallel by hand (`torch`), by Accelerate by hand, and by accmt, which evaluates after each of two epochs
and logs as it does by default. Every run is made of fresh processes; each round runs every contestant on one process
and on two, each round starting with the next of them. The time is that of the second epoch but for its first step:
there is no evaluation and no checkpoint in it. The efficiency is the rate of two processes over twice the rate of one.

The program exits with 1 if processes of a run end with different weights, or a contestant took another number of steps.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
NAMES = ("torch", "accelerate", "accmt")
PROCESSES = (1, 2)
FEATURES, CLASSES = 64, 10
TIME_LIMIT = 300

Run = dict[str, Any]


def main() -> int:
    arguments = parse_arguments()
    if arguments.contestant:
        sys.path.insert(0, str(REPOSITORY))
        run = measure(arguments)
        Path(f"{arguments.result}-{os.environ.get('RANK', '0')}").write_text(json.dumps(run))
        return 0
    cases = [(name, processes) for name in arguments.only for processes in PROCESSES]
    best = dict.fromkeys(cases, float("inf"))
    for number in range(arguments.rounds):
        turn = number % len(cases)
        for name, processes in cases[turn:] + cases[:turn]:
            runs = launch(name, processes, arguments)
            if {run["steps"] for run in runs} != {arguments.steps} or len({run["weights"] for run in runs}) > 1:
                print(f"{name} on {processes} did otherwise than asked: {runs}")
                return 1
            seconds = max(run["seconds"] for run in runs)
            best[name, processes] = min(best[name, processes], seconds)
            print(f"round {number + 1}, {name} on {processes}: {seconds:.2f} s", file=sys.stderr)
    print_table(arguments, best)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A training on one process and on two.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(NAMES))
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--result", help=argparse.SUPPRESS)
    return parser.parse_args()


def launch(name: str, processes: int, arguments: argparse.Namespace) -> list[Run]:
    """What each process measured."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *(torchrun if processes > 1 else []), __file__]
        command += ["--contestant", name, "--result", f"{folder}/run", "--steps", str(arguments.steps)]
        command += ["--width", str(arguments.width), "--batch", str(arguments.batch)]
        ran = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=TIME_LIMIT
        )
        if ran.returncode:
            raise SystemExit(f"{name} failed:\n{ran.stderr[-9000:]}")
        return [json.loads(Path(f"{folder}/run-{rank}").read_text()) for rank in range(processes)]


def print_table(arguments: argparse.Namespace, best: dict[tuple[str, int], float]) -> None:
    samples = arguments.batch * (arguments.steps - arguments.steps // 2 - 1)
    print(f"best of {arguments.rounds} rounds, samples/s")
    print(f"{'':<12}{'1 process':>12}{'2 processes':>13}{'efficiency':>12}")
    for name in arguments.only:
        alone, both = (processes * samples / best[name, processes] for processes in PROCESSES)
        print(f"{name:<12}{alone:>12,.0f}{both:>13,.0f}{both / alone / 2:>12.2f}")


class Clock:
    """Counts the steps of an optimizer, and times those of the second half but its first."""

    def __init__(self, steps: int) -> None:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self.steps = 0
        self.begun = self.ended = float("nan")
        self._first = steps // 2 + 1
        register_optimizer_step_post_hook(self._after_step)

    def _after_step(self, *_: object) -> None:
        self.steps += 1
        self.ended = time.perf_counter()
        if self.steps == self._first:
            self.begun = self.ended


def measure(arguments: argparse.Namespace) -> Run:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    width = arguments.width
    model = torch.nn.Sequential(
        torch.nn.Linear(FEATURES, width),
        torch.nn.ReLU(),
        torch.nn.Linear(width, width),
        torch.nn.ReLU(),
        torch.nn.Linear(width, CLASSES),
    )
    samples = arguments.batch * arguments.steps // 2 * int(os.environ.get("WORLD_SIZE", "1"))
    clock = Clock(arguments.steps)
    CONTESTANTS[arguments.contestant](model, make(samples), arguments.batch)
    weights = sum(parameter.double().sum().item() for parameter in model.parameters())
    return {"seconds": clock.ended - clock.begun, "steps": clock.steps, "weights": weights}


def make(samples: int) -> Any:
    import torch

    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, FEATURES, generator=generator)
    return torch.utils.data.TensorDataset(inputs, torch.randint(CLASSES, (samples,), generator=generator))


def by_torch(model: Any, data: Any, batch: int) -> None:
    import torch
    from torch import distributed as dist
    from torch.nn import functional
    from torch.nn.parallel import DistributedDataParallel

    is_several = "RANK" in os.environ
    sampler = None
    trained = model
    if is_several:
        dist.init_process_group("gloo")
        sampler = torch.utils.data.DistributedSampler(data)
        trained = DistributedDataParallel(model)
    loader = torch.utils.data.DataLoader(data, batch, shuffle=not is_several, sampler=sampler)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for epoch in range(2):
        if sampler is not None:
            sampler.set_epoch(epoch)
        for inputs, targets in loader:
            functional.cross_entropy(trained(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
    if is_several:
        dist.destroy_process_group()


def by_accelerate(model: Any, data: Any, batch: int) -> None:
    import torch
    from accelerate import Accelerator
    from torch.nn import functional

    accelerator = Accelerator()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = torch.utils.data.DataLoader(data, batch, shuffle=True)
    trained, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for _ in range(2):
        for inputs, targets in loader:
            accelerator.backward(functional.cross_entropy(trained(inputs), targets))
            optimizer.step()
            optimizer.zero_grad()
    accelerator.end_training()


def by_accmt(model: Any, data: Any, batch: int) -> None:
    from torch.nn import functional

    from accmt import AcceleratorModule, Trainer

    class Module(AcceleratorModule):
        def __init__(self) -> None:
            self.model = model

        def training_step(self, batch: Any) -> Any:
            inputs, targets = batch
            return functional.cross_entropy(self.model(inputs), targets)

        def validation_step(self, key: str, batch: Any) -> Any:
            return {"loss": self.training_step(batch)}

    hps = {"epochs": 2, "batch_size": batch, "optimizer": {"type": "AdamW", "lr": 1e-3}}
    trainer = Trainer(hps, "model", dataloader_num_workers=0)
    trainer.register_model_saving("best_valid_loss")
    trainer.fit(Module(), data, make(batch))


CONTESTANTS: dict[str, Callable[[Any, Any, int], None]] = {
    "torch": by_torch,
    "accelerate": by_accelerate,
    "accmt": by_accmt,
}

if __name__ == "__main__":
    sys.exit(main())

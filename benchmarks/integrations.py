"""How long rules take in a loop by hand: a call of `Rules.step` where nothing is due, beside a step of an MLP.

    python benchmarks/integrations.py [--rounds 5]

The MLP is that of `overhead.py` (64-128-128-10, batch 32, AdamW, clipping). Each figure is the minimum over the rounds.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from torch import nn

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from accmt.integrations.loop import Rules  # noqa: E402  (the checkout goes before what is installed)

STEPS = 2_000


def training_step() -> Callable[[], torch.Tensor]:
    """Return a function that makes a step of the MLP and returns its loss."""
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters())
    inputs, classes = torch.randn(32, 64), torch.randint(10, (32,))

    def step() -> torch.Tensor:
        loss = nn.functional.cross_entropy(model(inputs), classes)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def microseconds(call: Callable[[], object], rounds: int) -> float:
    """Return the time of a call."""
    times = []
    for _ in range(rounds):
        began = perf_counter()
        for _ in range(STEPS):
            call()
        times.append(perf_counter() - began)
    return min(times) / STEPS * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    step = training_step()
    loss, per_step = step(), microseconds(step, rounds)
    print(f"a step of the MLP             {per_step:8.2f} us")
    kinds = {"no loss": {}, "loss as a number": {"train_loss": 0.5}, "loss as a tensor": {"train_loss": loss}}
    for name, given in kinds.items():
        for stop in ("step > 1000000", "elapsed > 2 hours"):
            with tempfile.TemporaryDirectory() as folder:
                rules = Rules(
                    folder,
                    metrics={"accuracy": "max"},
                    datasets=["dev"],
                    evaluate_every="1000000 steps",
                    stop_when=stop,
                )
                took = microseconds(partial(rules.step, **given), rounds)
                rules.close()
            print(f"Rules.step, {name:16}  {took:8.2f} us  {took / per_step:6.2%}  (stop_when {stop})")


if __name__ == "__main__":
    main()

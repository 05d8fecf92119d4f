"""How much of a step of the Trainer of transformers is spent in its callback of rules, where nothing is due.

    python benchmarks/transformers_rules.py [--steps 2000] [--rounds 3]

The MLP is that of `overhead.py` (64-128-128-10, batch 32). Medians over
the steps are taken, and their minimum over the rounds is printed.
"""

import argparse
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from accmt.integrations.transformers import Rules  # noqa: E402  (the checkout goes before what is installed)

BATCH = 32


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": nn.functional.cross_entropy(self.layers(inputs), labels)}


class Timed(Rules):
    """The same, with the moments at which it is called at the end of a step, and returns."""

    def __init__(self, *arguments: object, **given: object) -> None:
        super().__init__(*arguments, **given)
        self.began: list[float] = []
        self.ended: list[float] = []

    def on_step_end(self, *arguments: object, **parts: object) -> object:
        self.began.append(perf_counter())
        control = super().on_step_end(*arguments, **parts)
        self.ended.append(perf_counter())
        return control


def train(steps: int) -> tuple[float, float]:
    """Return the median microseconds of a step, and of the callback in it."""
    data = [{"inputs": torch.randn(64), "labels": torch.tensor(index % 10)} for index in range(BATCH * 100)]
    with tempfile.TemporaryDirectory() as folder:
        settings = {"max_steps": steps, "per_device_train_batch_size": BATCH, "logging_steps": 500, "report_to": []}
        settings |= {"eval_strategy": "no", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
        rules = Timed(f"{folder}/rules", evaluate_every=f"{steps} steps", stop_when="step > 1000000", patience=3)
        arguments = TrainingArguments(f"{folder}/host", **settings)
        Trainer(Network(), arguments, train_dataset=data, eval_dataset=data[:BATCH], callbacks=[rules]).train()
    step = median(later - sooner for sooner, later in pairwise(rules.began))
    return step * 1e6, median(end - begin for begin, end in zip(rules.began, rules.ended, strict=True)) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    figures = [train(given.steps) for _ in range(given.rounds)]
    step, callback = (min(column) for column in zip(*figures, strict=True))
    print(f"a step {step:.0f} us, of which the rules {callback:.1f} us: {callback / step:.2%}")


if __name__ == "__main__":
    main()

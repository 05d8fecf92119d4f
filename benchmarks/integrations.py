"""How long rules take: a call of `Rules.step` in a loop by hand where nothing is due, beside a step of an MLP; and
what the rules in trainers of others take of their steps, with the same MLP.

    python benchmarks/integrations.py [--rounds 5]

The MLP is that of `overhead.py` (64-128-128-10, batch 32, AdamW, clipping). Each figure is the minimum over the rounds,
and for other trainers the median of their steps. Those that are not installed are skipped.
"""

import argparse
import os
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial, wraps
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from accmt.integrations.loop import Rules  # noqa: E402  (the checkout goes before what is installed)

STEPS = 2_000
GIVEN: dict[str, Any] = {"save": "best_train_loss", "stop_when": ["step > 1000000", "elapsed > 2 hours"]}
Stretch = tuple[list[float], list[float]]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def training_step() -> Callable[[], torch.Tensor]:
    """Return a function that makes a step of the MLP and returns its loss."""
    model = mlp()
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


def batches() -> Any:
    data = torch.utils.data.TensorDataset(torch.randn(32 * STEPS // 4, 64), torch.randint(10, (32 * STEPS // 4,)))
    return torch.utils.data.DataLoader(data, batch_size=32)


def timed(rules: Any, name: str) -> Stretch:
    """Record when a method of the rules is called, and how long it takes."""
    inner, calls, took = getattr(rules, name), [], []

    @wraps(inner)
    def call(*args: Any, **kwargs: Any) -> None:
        calls.append(perf_counter())
        inner(*args, **kwargs)
        took.append(perf_counter() - calls[-1])

    setattr(rules, name, call)
    return calls, took


def in_lightning(folder: str) -> Stretch:
    import lightning.pytorch as pl

    from accmt.integrations.lightning import Rules

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters())

    rules = Rules(folder, datasets=[], **GIVEN)
    found = timed(rules, "on_train_batch_end")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    pl.Trainer(max_epochs=1, callbacks=[rules], gradient_clip_val=1.0, **quiet).fit(Module(), batches())
    return found


def in_ignite(folder: str) -> Stretch:
    from ignite.engine import Engine

    from accmt.integrations.ignite import Rules

    model, loss = mlp(), nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters())

    def step(engine: Engine, batch: list[torch.Tensor]) -> float:
        found = loss(model(batch[0]), batch[1])
        found.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return found.item()

    rules, trainer = Rules(folder, **GIVEN), Engine(step)
    found = timed(rules, "_after_iteration")
    rules.attach(trainer, model=model)
    trainer.run(batches(), max_epochs=1)
    return found


def in_keras(folder: str) -> Stretch:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    from accmt.integrations.keras import Rules

    sizes = [(128, "relu"), (128, "relu"), (10, None)]
    model = keras.Sequential([keras.Input((64,)), *(keras.layers.Dense(size, activation=act) for size, act in sizes)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(clipnorm=1.0), loss)
    rules = Rules(folder, datasets=[], **GIVEN)
    found = timed(rules, "on_train_batch_end")
    model.fit(batches(), callbacks=[rules], verbose=0)
    return found


HOSTS = {"lightning": in_lightning, "ignite": in_ignite, "keras": in_keras}


def host_times(train: Callable[[str], Stretch], rounds: int) -> tuple[float, float]:
    """Return the time of the rules in a step of another trainer, and that of a step, in microseconds."""
    pairs = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
            calls, took = train(folder)
        steps = [after - before for before, after in pairwise(calls)]
        pairs.append((statistics.median(took) * 1e6, statistics.median(steps) * 1e6))
    return min(own for own, _ in pairs), min(step for _, step in pairs)


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
    for name, train in HOSTS.items():
        if find_spec(name) is None:
            print(f"{name} is not installed")
            continue
        own, per_step = host_times(train, rounds)
        print(f"Rules in {name:19}  {own:8.2f} us  {own / per_step:6.2%}  of a step of {per_step:.0f} us")


if __name__ == "__main__":
    main()

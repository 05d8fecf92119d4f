"""A training on several processes whose metrics are drawn by chance: `deciding.py FOLDER` writes what each decided."""

import json
import math
import os
import random
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from accmt import AcceleratorModule, Callback, FunctionMetric, MetricParallel, Trainer

torch.set_num_threads(1)
folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
chance = random.Random(f"{os.getpid()}")  # no two processes draw alike


def drawn():
    return chance.choice([chance.random(), chance.random(), round(chance.random(), 1), math.nan, math.inf])


class Own(MetricParallel):
    def compute(self, values):
        return {self.name: drawn()}


class Module(AcceleratorModule):
    def __init__(self):
        self.model = nn.Linear(2, 1)

    def training_step(self, batch):
        return self.model(batch[0]).square().mean()

    def validation_step(self, key, batch):
        return {"loss": torch.tensor(drawn()), "score": (batch[0],), "own": (batch[0],)}


class Outcome(Callback):
    def on_fit_end(self):
        state = self.state
        own = {
            "decisions": [decision.to_json() for decision in self.trainer.decisions],
            "saved": state.model_savings,
            "patience": state.patience_left,
            "checkpoints": state.num_checkpoints_made,
        }
        Path(f"{folder}-rank{rank}.json").write_text(json.dumps(own))


def data(count):
    return TensorDataset(torch.ones(count, 2))


trainer = Trainer(
    {"epochs": 10_000, "batch_size": (2, 4), "optimizer": "SGD"},
    folder,
    metrics=[FunctionMetric("score", lambda values: drawn(), True), Own("own")],
    evaluate_every="3 steps or 0.5 seconds",
    checkpoint_every="0.4 seconds",
    stop_when="elapsed > 4 seconds",
    log_every=5,
    dataloader_num_workers=0,
    callback=Outcome(),
    quiet=True,
)
for rule in (
    "best_score@a/own@b",
    "best_avg(score, 3) keep 2 if elapsed > 1 seconds",
    "best_worst(score) by 5%",
    "best_valid_loss@a if own@b < 0.9 after 5 steps",
):
    trainer.register_model_saving(rule)
trainer.fit(Module(), data(32), {"a": data(9), "b": data(5)})

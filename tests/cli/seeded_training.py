"""A training for the tests of `accmt seeds`: `seeded_training.py FOLDER [NAME=VALUE ...]`.

`fails` is a seed at which it raises, `width` changes the model; unless the file `waits` exists, the third step lasts
until SIGTERM comes. It calls `set_seed(0)`, as if there were one run only.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from accmt import AcceleratorModule, Callback, FunctionMetric, HyperParameters, Trainer, set_seed

folder, given = Path(sys.argv[1]), dict(argument.split("=") for argument in sys.argv[2:])
torch.set_num_threads(1)
inputs = torch.randn(36, 4, generator=torch.Generator().manual_seed(0))
targets = (inputs.sum(1) > 0).long()
train, dev, test = (TensorDataset(inputs[part::3], targets[part::3]) for part in range(3))


class Module(AcceleratorModule):
    def __init__(self):
        width = int(given.get("width", 8))
        self.model = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))

    def training_step(self, batch):
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, key, batch):
        logits = self.model(batch[0])
        return {"loss": nn.functional.cross_entropy(logits, batch[1]), "accuracy": (logits.argmax(1), batch[1])}


class Obstacle(Callback):
    def on_after_optimizer_step(self, optimizer):
        if "waits" in given and self.state.global_step == 3 and not Path(given["waits"]).exists():
            got, handler = [], signal.getsignal(signal.SIGTERM)
            signal.signal(signal.SIGTERM, lambda *caught: (got.append(caught), handler(*caught)))
            Path(f"{given['waits']}-{os.environ['ACCMT_SEED']}").touch()
            while not got:
                time.sleep(0.01)


set_seed(0)
module = Module()
if given.get("fails") == os.environ.get("ACCMT_SEED", "none"):
    raise ValueError("this seed fails")
accuracy = FunctionMetric("accuracy", lambda guesses, true: guesses == true, greater_is_better=True, per_sample=True)
hps = HyperParameters(2, batch_size=4, optimizer="SGD", optim_kwargs={"lr": 0.1})
trainer = Trainer(hps, folder, metrics=accuracy, held_out="test", callback=Obstacle(), dataloader_num_workers=0, seed=1)
trainer.register_model_saving("best_valid_loss")
trainer.fit(module, train, {"dev": dev, "test": test})

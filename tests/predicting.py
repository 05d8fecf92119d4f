"""A program that predicts with one process or several: `predicting.py PATH` writes what each process found."""

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset

from accmt import AcceleratorModule, HyperParameters, Trainer, load_best, set_seed

torch.set_num_threads(1)
path = Path(sys.argv[1])
rank = int(os.environ.get("RANK", "0"))
set_seed(0)
batches = []


class Module(AcceleratorModule):
    def __init__(self):
        self.model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))

    def training_step(self, batch):
        return self.model(batch[0]).square().mean()

    def validation_step(self, key, batch):
        return {"loss": -self.training_step(batch)}  # the first evaluation is the best

    def predict_step(self, batch):
        batches.append(batch)
        names = [f"sample {int(index)}" for index in batch[1]]
        return self.model(batch[0]), names


class Failing(Module):
    def predict_step(self, batch):
        if 4 in batch[1]:
            raise LookupError("sample 4")


class Odd(Module):
    def predict_step(self, batch):
        return torch.zeros(2, 2 + int(4 in batch[1]))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(dataset)


generator = torch.Generator().manual_seed(0)
dataset = TensorDataset(torch.randn(11, 2, generator=generator), torch.arange(11))
hps = HyperParameters(3, None, (2, 2), "SGD", {"lr": 0.5})
trainer = Trainer(hps, path, dataloader_num_workers=0, destroy_after_training=False, restore_best=True, quiet=True)


def error_of(module):
    try:
        trainer.predict(module, dataset)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def listed(joined):
    return (None, None) if joined is None else (joined[0].tolist(), joined[1])


module = Module()
found = {}
found["predictions"], found["names"] = listed(trainer.predict(module, dataset))
found["batches"] = len(batches)
found["stream"], _ = listed(trainer.predict(module, Stream()))
found["failed"], found["mismatch"] = error_of(Failing()), error_of(Odd())
trainer.fit(module, dataset, dataset)
found["restored"] = [value.tolist() for value in module.parameters()]
other = Module()
assert load_best(path, other).epoch < 3, trainer.decisions
found["best"] = [value.tolist() for value in other.parameters()]
Path(f"{path}-{rank}.json").write_text(json.dumps(found))

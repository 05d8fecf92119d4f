"""A training that the tests launch on several processes: `train.py FOLDER [key=value ...]`."""

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torchmetrics
from accelerate import PartialState
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset

from accmt import (
    AcceleratorModule,
    Callback,
    FunctionMetric,
    HyperParameters,
    MetricParallel,
    TorchMetric,
    Trainer,
    set_seed,
)

torch.set_num_threads(1)
folder, *pairs = sys.argv[1:]
arguments = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in pairs)}
cut, seed, epochs = arguments.pop("cut", None), arguments.pop("seed", 0), arguments.pop("epochs", 2)
dropout, stream = arguments.pop("dropout", 0.0), arguments.pop("stream", False)
again, width = arguments.pop("again", False), arguments.pop("width", 16)
timeout, held = arguments.pop("timeout", None), arguments.pop("held", None)
rank = int(os.environ.get("RANK", "0"))
if timeout is not None:
    PartialState(cpu=True, timeout=timedelta(seconds=timeout))


class Module(AcceleratorModule):
    def __init__(self):
        self.model = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Dropout(dropout), nn.Linear(width, 2))

    def training_step(self, batch):
        if cut is not None and self.state.global_step == cut:
            os._exit(3)
        while self.state.global_step == held and not Path(f"{folder}.go").exists():
            time.sleep(0.01)
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, key, batch):
        logits = self.model(batch[0])
        labels = logits.argmax(1)
        return {
            "loss": nn.functional.cross_entropy(logits, batch[1]),
            "accuracy": (labels, batch[1]),
            "order": ({"index": batch[2]},),
            "same": (labels, batch[1]),
            "parallel": (labels, batch[1]),
        }


class Parallel(MetricParallel):
    def compute(self, predictions, labels):
        return {"parallel": (predictions == labels).float().mean()}


def is_ordered(columns):
    index = columns["index"]
    return float(torch.equal(index, torch.arange(len(index))))


class Outcome(Callback):
    """What every process holds at the end."""

    def on_fit_end(self):
        decisions = [decision.to_json() for decision in self.trainer.decisions]
        metrics = self.state.additional_metrics
        weights = {name: value.tolist() for name, value in self.module.model.named_parameters()}
        own = {"decisions": decisions, "metrics": metrics, "weights": weights, "steps": self.state.global_step}
        Path(f"{folder}-rank{rank}.json").write_text(json.dumps(own))


class Stream(IterableDataset):
    def __init__(self, dataset):
        self.dataset = dataset

    def __iter__(self):
        return (self.dataset[i] for i in range(len(self.dataset)))


def data(count, seed):
    inputs = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, (inputs.sum(1) > 0).long(), torch.arange(count))


set_seed(seed)
trainer = Trainer(
    HyperParameters(epochs, batch_size=(4, 4), optimizer="AdamW", optim_kwargs={"lr": 0.01}),
    folder,
    metrics=[
        FunctionMetric("accuracy", lambda p, t: (p == t).float().mean(), True),
        FunctionMetric("order", is_ordered, True),
        TorchMetric("same", torchmetrics.classification.BinaryAccuracy()),
        Parallel("parallel"),
    ],
    callback=Outcome(),
    dataloader_num_workers=0,
    **arguments,
)
trainer.register_model_saving("best_accuracy@a/valid_loss@b")
trainer.register_model_saving("best_worst(accuracy)")
validation = {"a": data(22, 1), "b": data(5, 2)}
if stream:
    validation = {name: Stream(dataset) for name, dataset in validation.items()}
module = Module()
if again:
    before = trainer.evaluate(module, validation)
    assert all(value["order"] == 1.0 for value in before.values())
trainer.fit(module, data(50, 0), validation)
if again:
    values = trainer.evaluate(module, validation)
    Path(f"{folder}-rank{rank}-again.json").write_text(json.dumps(values))
threads = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
Path(f"{folder}-rank{rank}-threads.json").write_text(json.dumps(threads))

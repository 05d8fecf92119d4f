"""An evaluation that the tests launch on some number of processes: `exact.py FILE` writes the values of each."""

import json
import os
import sys
import tempfile
from pathlib import Path

import torch
import torchmetrics
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from accmt import AcceleratorModule, FunctionMetric, MetricParallel, TorchMetric, Trainer

SIZES = (1, 2, 5, 7, 22)
BATCHES = (1, 3, 4, 50)

torch.set_num_threads(1)


def checksum(*tensors):
    """It depends on every element, its type and its place."""
    total = 0.0
    for number, tensor in enumerate(tensors, start=1):
        places = torch.arange(1, tensor.numel() + 1, dtype=torch.float64)
        total += number * float((places * tensor.reshape(-1).double()).sum()) + len(str(tensor.dtype)) * tensor.dim()
    return total


class Mean(MetricParallel):
    def compute(self, values):
        return {self.name: values.double().mean()}


class Module(AcceleratorModule):
    def __init__(self):
        self.model = nn.Linear(1, 1)

    def training_step(self, batch): ...

    def validation_step(self, key, batch):
        x, tokens = batch["x"], batch["tokens"]
        return {
            "loss": x.double().mean(),
            "floats": (x, x.flip(1)),
            "halves": (x.half(),),
            "whole": ((x * 9).long(), (x * 9).to(torch.int8)),
            "truths": (x > 0,),
            "named": ({"a": x, "b": {"c": x[:, 0], "d": x[:, 1] > 0}},),
            "ragged": (tokens,),
            "mean": (x,),
            "accuracy": (x[:, 0] > 0.1, x[:, 1] > 0.1),
            "order": (x[:, 0], x[:, 1]),
            "right": (x[:, 0] > 0.1, x[:, 1] > 0.1),
            "error": (x[:, 0], x[:, 1]),
        }


def named(columns):
    return checksum(columns["a"], columns["b"]["c"], columns["b"]["d"])


def make(count):
    generator = torch.Generator().manual_seed(count)
    samples = []
    for _ in range(count):
        length = int(torch.randint(1, 9, (), generator=generator))
        samples.append({"x": torch.randn(2, generator=generator), "tokens": torch.arange(length) + 1})
    return samples


def collate(samples):
    tokens = pad_sequence([sample["tokens"] for sample in samples], batch_first=True, padding_value=-1)
    return {"x": torch.stack([sample["x"] for sample in samples]), "tokens": tokens}


def evaluate(size, metrics, counts):
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            {"epochs": 1, "batch_size": (4, size), "optimizer": "SGD"},
            folder,
            metrics=metrics,
            collate_fn=collate,
            dataloader_num_workers=0,
            destroy_after_training=False,
        )
        return trainer.evaluate(Module(), {str(count): make(count) for count in counts})


values = {}
for size in BATCHES:
    metrics = [
        *(FunctionMetric(name, checksum, True) for name in ("floats", "whole", "truths")),
        FunctionMetric("named", named, True),
        FunctionMetric("ragged", checksum, True, pad=-1),
        Mean("mean"),
        TorchMetric("accuracy", torchmetrics.classification.BinaryAccuracy()),
        FunctionMetric("right", torch.eq, True, per_sample=True),
        FunctionMetric("error", lambda one, other: (one - other).abs(), False, per_sample=True),
        TorchMetric("order", torchmetrics.SpearmanCorrCoef(), greater_is_better=True),
    ]
    halves = FunctionMetric("halves", checksum, True)
    halves.cast = None
    values[size] = evaluate(size, [*metrics, halves], SIZES)
try:
    evaluate(2, [FunctionMetric("ragged", checksum, True)], [22])
except Exception as error:
    refused = f"{type(error).__name__}: {error}"
found = {"values": values, "refused": refused}
Path(f"{sys.argv[1]}-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))

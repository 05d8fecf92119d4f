"""Trainings of two processes that the tests launch: `processes.py FOLDER`, each process writes FOLDER/rank*.json.

They follow each other in one script, so all but the last leave the process group as it is.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from torch import distributed, nn
from torch.utils.data import Dataset, TensorDataset

import accmt.data.loaders
from accmt import AcceleratorModule, Callback, HyperParameters, Metric, MetricParallel, Trainer, set_seed

torch.set_num_threads(1)
folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
found: dict = {"sent": []}


class Told(GeneralTracker):
    name = "told"
    requires_logging_directory = False

    def __init__(self, project):
        super().__init__()

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        """Nothing."""

    def log(self, values, step=None, **kwargs):
        found["sent"] += [(step, name, value) for name, value in values.items()]


LOGGER_TYPE_TO_CLASS["told"] = Told


class Module(AcceleratorModule):
    def __init__(self, dtype=torch.float32):
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype)

    def training_step(self, batch):
        return nn.functional.mse_loss(self.model(batch[0]), batch[1])

    def validation_step(self, key, batch):
        loss = nn.functional.mse_loss(self.model(batch[0]), batch[1])
        return {"loss": loss, "share": batch[1], "whole": batch[1], "wide": (batch[1], {"a": batch[0]})}


class Logging(Module):
    """Logs what differs between the processes: tensors 1 and 3, and other numbers 10 and 20."""

    def training_step(self, batch):
        step, own = self.state.global_step, torch.tensor(1.0 + 2 * rank)
        self.log({"mean": own, "number": 10 * (rank + 1)}, step)
        self.log({"sum": own}, step, reduction="sum")
        return super().training_step(batch)


class Share(MetricParallel):
    """The mean over the samples of a process, and which process it was."""

    def compute(self, targets):
        return {"share": targets.mean(), "rank": float(rank)}


class Whole(Metric):
    """The same mean, and over how many samples; computed on one process only."""

    def compute(self, targets):
        found.setdefault("computed", 0)
        found["computed"] += 1
        return {"whole": targets.mean().item(), "samples": len(targets)}


def data(count, seed, dtype=torch.float32):
    inputs = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return TensorDataset(inputs, inputs.sum(1, keepdim=True))


def train(name, module, *datasets, **arguments):
    settings = HyperParameters(2, batch_size=4, optimizer="SGD", optim_kwargs={"lr": 0.1})
    arguments = {"dataloader_num_workers": 0, "destroy_after_training": False, **arguments}
    training = Trainer(settings, folder / name, **arguments)
    training.fit(module, *datasets)
    return training


def weights(module):
    return [value for parameter in module.model.parameters() for value in parameter.flatten().tolist()]


def by_safe_mode():
    """The same training through the wrapper and past it, with uneven shares, accumulation and clipping."""
    seen: dict = {}

    class Called(Module):
        def training_step(self, batch):
            seen.setdefault("called", type(self.model).__name__)
            return super().training_step(batch)

    for safe in (True, False):
        set_seed(5)
        module = Called(torch.float64)
        seen.clear()
        arguments = {"safe_mode": safe, "grad_accumulation_steps": 2, "clip_grad": 0.5}
        train(f"safe-{safe}", module, data(22, 0, torch.float64), **arguments)
        found[f"safe-{safe}"] = {"weights": weights(module), "called": seen["called"]}


def by_metrics():
    training = train("metrics", Module(), data(8, 0), data(10, 1), metrics=[Share("share"), Whole("whole")])
    found["metrics"] = training.state.additional_metrics
    found["targets"] = data(10, 1).tensors[1].flatten().tolist()


class Loading(Dataset):
    """Samples that have to be loaded."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def by_workers():
    """How many workers each loader is asked for, if nobody says."""
    real, asked = accmt.data.loaders.OwnLoader, []

    class Asked(real):
        def __init__(self, *arguments, num_workers=0, **options):
            asked.append(num_workers)
            super().__init__(*arguments, **options)

    accmt.data.loaders.OwnLoader = Asked
    try:
        train("workers", Module(), Loading(data(8, 0)), Loading(data(8, 1)), dataloader_num_workers=None)
    finally:
        accmt.data.loaders.OwnLoader = real
    found["workers"] = asked


class Hooks(Callback):
    """Counts the steps on every process."""

    def __init__(self):
        super().__init__()
        self.steps = 0

    def on_after_optimizer_step(self, optimizer):
        self.steps += 1


by_safe_mode()
by_metrics()
by_workers()
train("logging", Logging(), data(8, 0), log_with="told", log_every=1, monitor={"train_loss": False, "epoch": False})
found["group after all but the last"] = distributed.is_initialized()
hooks = Hooks()
train("last", Module(), data(8, 0), callback=hooks, destroy_after_training=True)
found["steps"] = hooks.steps
found["group after the last"] = distributed.is_initialized()
(folder / f"rank{rank}.json").write_text(json.dumps(found))

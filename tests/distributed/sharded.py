"""Loaders that users prepared for several processes: `sharded.py FOLDER` writes what became of them."""

import json
import os
import sys
import warnings
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from torch import distributed as dist
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler, Subset, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from accmt import AcceleratorModule, FunctionMetric, Trainer, set_seed

torch.set_num_threads(1)
folder, state = Path(sys.argv[1]), PartialState(cpu=True)
rank = state.process_index
data = TensorDataset(torch.arange(18.0).unsqueeze(1))


class Module(AcceleratorModule):
    def __init__(self, make, trains=True):
        self.model = nn.Linear(1, 1)
        self.make, self.trains, self.seen = make, trains, []

    def get_train_dataloader(self, dataset):
        return self.make(dataset) if self.trains else DataLoader(dataset, 2)

    def get_validation_dataloader(self, dataset):
        return self.make(dataset)

    def training_step(self, batch):
        self.seen += batch[0].flatten().int().tolist()
        return 0 * self.model(batch[0]).mean() + batch[0].square().mean()

    def validation_step(self, key, batch):
        return {"loss": batch[0].square().mean(), "count": (batch[0],)}


class ByRank(Sampler):
    def __iter__(self):
        return iter(range(rank, 18, 2))

    def __len__(self):
        return 9


class Other(DistributedSampler):
    """A kind of its own."""


class Stream(IterableDataset):
    def __init__(self, by_rank):
        self.by_rank = by_rank

    def __iter__(self):
        return (data[i] for i in (range(rank, 18, 2) if self.by_rank else range(18)))


def distributed(dataset, **options):
    return DistributedSampler(dataset, shuffle=False, **options)


CASES = {
    "sampler": lambda d: DataLoader(d, 2, sampler=distributed(d)),
    "shuffled": lambda d: DataLoader(d, 2, sampler=DistributedSampler(d, seed=3)),
    "batch sampler": lambda d: DataLoader(d, batch_sampler=BatchSampler(distributed(d), 2, False)),
    "plain": lambda d: DataLoader(d, 2),
    "other number": lambda d: DataLoader(d, 2, sampler=distributed(d, num_replicas=4, rank=rank)),
    "kind of its own": lambda d: DataLoader(d, 2, sampler=Other(d)),
    "by rank": lambda d: DataLoader(d, 2, sampler=ByRank()),
    "batches by rank": lambda d: DataLoader(d, batch_sampler=[[i, i + 1] for i in range(rank * 2, 18, 4)]),
    "seeds by rank": lambda d: DataLoader(d, 2, shuffle=True, generator=torch.Generator().manual_seed(rank)),
    "subset by rank": lambda d: DataLoader(Subset(d, range(rank, 18, 2)), 2),
    "prepared": lambda d: Accelerator().prepare(DataLoader(d, 2)),
    "stream": lambda d: DataLoader(Stream(False), 2),
    "stream by rank": lambda d: DataLoader(Stream(True), 2),
}


def tried(name, make, trains):
    set_seed(0)
    module = Module(make, trains)
    trainer = Trainer(
        {"epochs": 1, "batch_size": 2, "optimizer": "SGD"},
        folder / f"{name} {trains}",
        metrics=FunctionMetric("count", len, greater_is_better=True),
        dataloader_num_workers=0,
        destroy_after_training=False,
        enable_checkpointing=False,
        disable_model_saving=True,
        quiet=True,
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            trainer.fit(module, data, data)
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}", "seen": module.seen}
    values = trainer.state.additional_metrics["0"]
    train_loss = trainer.state.best_train_loss
    return {**values, "train_loss": train_loss, "seen": module.seen, "said": [str(each.message) for each in said]}


found = {f"{name} {trains}": tried(name, make, trains) for name, make in CASES.items() for trains in (True, False)}
Path(f"{folder}-{os.environ['RANK']}.json").write_text(json.dumps(found))
dist.destroy_process_group()

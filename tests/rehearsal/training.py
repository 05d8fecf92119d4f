"""A training that the tests rehearse: `training.py WHAT FOLDER`, which writes what it found into FOLDER/found.json."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset

from accmt import AcceleratorModule, Callback, FunctionMetric, HyperParameters, Trainer, set_seed

what, folder = sys.argv[1], Path(sys.argv[2])
torch.set_num_threads(1)
set_seed(3)


class Module(AcceleratorModule):
    def __init__(self):
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))

    def training_step(self, batch):
        if what == "raises" and self.state.global_step == 2:
            raise ValueError("the third batch is wrong")
        inputs, targets = batch
        return nn.functional.mse_loss(self.model(inputs), targets)

    def validation_step(self, key, batch):
        outputs = self.model(batch[0])
        return {"loss": nn.functional.mse_loss(outputs, batch[1]), "error": (outputs, batch[1])}


class Counter(Callback):
    """Has state, and writes into the folder of the training."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def on_evaluation_end(self):
        self.calls += 1
        (self.trainer.model_path / "own.txt").write_text(str(self.calls))

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


class Drifting(torch.utils.data.Dataset):
    """Its samples depend on how many were read before, which no checkpoint knows."""

    def __init__(self):
        self.read = 0

    def __len__(self):
        return 80

    def __getitem__(self, index):
        self.read += 1
        return torch.full((4,), index + self.read / 7), torch.ones(1)


class Stream(IterableDataset):
    def __iter__(self):
        generator = torch.Generator().manual_seed(1)
        for _ in range(60):
            yield torch.randn(4, generator=generator), torch.ones(1)


def data(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 4, generator=generator)
    return TensorDataset(inputs, inputs.sum(1, keepdim=True))


def random_states():
    states = [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]
    return json.dumps([states, sampler_generator.get_state().tolist()])


def files():
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


sampler_generator = torch.Generator().manual_seed(9)
train = {"drifts": Drifting, "stream": Stream, "endless": Stream}.get(what, lambda: data(80))()
valid = {"none": None, "stream": Stream(), "few": data(3, 1)}.get(what, data(20, 1))
counter, module = Counter(), Module()
arguments = {"callback": counter, "dataloader_num_workers": 0, "metrics": None, "clip_grad": 1.0}
arguments["metrics"] = FunctionMetric("error", lambda p, t: (p - t).abs().mean(), greater_is_better=False)
if what == "endless":
    arguments |= {"multiple_checkpoints": True}
if what == "async":
    arguments |= {"checkpoint_async": True, "dataloader_num_workers": 1}
if what == "tracked":
    arguments |= {"log_with": "tensorboard", "logging_dir": str(folder / "logs")}
arguments |= {"no saving": {"disable_model_saving": True}, "no checkpoints": {"enable_checkpointing": False}}.get(
    what, {}
)
if what in ("none",):
    del arguments["metrics"]
if what == "few":
    arguments |= {"restore_best": "best_valid_loss"}
length = {"epochs": 3, "max_steps": {"one step": 1, "two steps": 2, "stream": 30}.get(what)}
hps = HyperParameters(**length, batch_size=4, optimizer="AdamW", optim_kwargs={"lr": 0.01})
trainer = Trainer(hps, folder / "model", **arguments)
if what != "none":
    trainer.register_model_saving("best_error")
trainer.register_model_saving("best_valid_loss keep 2 if step > 1000" if what != "none" else "best_train_loss")
if what == "fits":
    trainer.fit(module, train, valid)
    raise SystemExit
if what == "fit first":
    trainer.fit(module, train, valid)
    trainer = Trainer(hps, folder / "model", **arguments)
before = [random_states(), files(), counter.calls, sorted(vars(module)), str(list(module.model.parameters()))]
more = {"kwargs": {"num_labels": 2}, "plain": {"loss_fn": torch.nn.MSELoss(), "metrics": "mae"}}.get(what, {})
found = trainer.rehearse(module.model if what == "plain" else module, train, valid, **more)
after = [random_states(), files(), counter.calls, sorted(vars(module)), str(list(module.model.parameters()))]
result = {"costs": found.costs, "notes": found.notes, "differences": found.differences, "not_tried": found.not_tried}
result |= {"unchanged": before == after, "left": files(), "seconds": found.seconds, "text": str(found)}
if what == "exact":
    trainer.fit(module, train, valid)
    result["trained"] = [value.flatten().tolist() for value in module.model.parameters()]
(folder / "found.json").write_text(json.dumps(result))

"""Searches that the tests launch on several processes: `processes.py FOLDER both`, or `alone` for a failing one."""

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import optuna
import torch
from torch import nn
from torch.utils.data import TensorDataset

from accmt import AcceleratorModule, Callback, set_seed
from accmt.hp_search import HyperParameterSearch, agreement

torch.set_num_threads(1)
folder, mode = Path(sys.argv[1]), sys.argv[2]
rank = int(os.environ["RANK"])
FAILS_EVERYWHERE, FAILS_ON_ONE, PRUNED = 1, 2, 3


class Module(AcceleratorModule):
    def __init__(self):
        self.model = nn.Linear(4, 1)

    def training_step(self, batch):
        if witness.number == FAILS_EVERYWHERE:
            raise RuntimeError("fails everywhere")
        if mode == "alone" and rank == 1 and self.state.global_step == 2:
            raise RuntimeError("fails alone")
        return nn.functional.mse_loss(self.model(batch[0]), batch[1])

    def validation_step(self, key, batch):
        return nn.functional.mse_loss(self.model(batch[0]), batch[1])


class Witness(Callback):
    """What each training used on this process, and a failure of one process alone after its last step."""

    def __init__(self):
        super().__init__()
        self.used, self.folders, self.evaluations, self.number = [], [], [], -1

    def __deepcopy__(self, memo):
        return self  # one for all trials

    def on_fit_start(self):
        self.number += 1
        self.evaluations.append(0)
        self.folders.append(str(self.trainer.model_path))

    def on_before_training_step(self, batch):
        self.batch = len(batch[0])

    def on_before_optimizer_step(self, optimizer):
        self.used.append((self.number, self.batch, optimizer.param_groups[0]["lr"]))

    def on_evaluation_end(self):
        self.evaluations[-1] += 1

    def on_fit_end(self):
        if self.number == FAILS_ON_ONE and rank == 1:
            raise ValueError("fails on one")


class OneIsPruned(optuna.pruners.BasePruner):
    def prune(self, study, trial):
        assert rank == 0
        return trial.number == PRUNED


class OnMain(optuna.samplers.RandomSampler):
    def before_trial(self, study, trial):
        assert rank == 0
        super().before_trial(study, trial)


def data(count, seed):
    inputs = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, inputs.sum(1, keepdim=True))


def last_loss(metrics):
    assert rank == 0
    calls.append(metrics)
    if len(calls) == 2:
        raise LookupError("only the main process knows")
    return metrics["b"]["valid_loss"]


set_seed(rank)
witness, calls = Witness(), []
storage = f"sqlite:///{folder / 'search.db'}"
shared = (Module, data(32, 0), {"a": data(7, 1), "b": data(3, 2)})
first = HyperParameterSearch(*shared, callback=witness, dataloader_num_workers=0, destroy_after_training=False)
first.set_parameters(train_batch_size=[2, 4], learning_rate=[1e-3, 1e-1], epochs=2)
if mode == "alone":
    agreement.PATIENCE = timedelta(seconds=2)
    first.optimize(n_trials=2, storage=storage, study_name="two")
study = first.optimize(n_trials=5, storage=storage, study_name="two", sampler=OnMain(), pruner=OneIsPruned())

second = HyperParameterSearch(*shared, dataloader_num_workers=0)
second.set_parameters(train_batch_size=4, learning_rate=0.1)
other = second.optimize(last_loss, n_trials=3)


def described(study):
    return [(t.number, t.state.name, t.value, t.params, t.user_attrs.get("error")) for t in study.trials]


own = {
    "used": witness.used,
    "folders": witness.folders,
    "evaluations": witness.evaluations,
    "study": described(study),
    "other": described(other),
    "best": study.best_params,
    "names": [study.study_name, other.study_name],
    "threads": [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()],
}
(folder / f"rank{rank}.json").write_text(json.dumps(own))

"""A search over small trainings, and a callback that writes down what each of them really did."""

from __future__ import annotations

import pytest

from accmt import Callback
from accmt.hp_search import HyperParameterSearch

optuna = pytest.importorskip("optuna", reason="optuna is not installed")


class Witness(Callback):
    """One entry per training: what its optimizer, scheduler and batches were, and what its evaluations brought."""

    def __init__(self):
        super().__init__()
        self.trainings = []

    def __deepcopy__(self, memo):
        return self  # one for all trials

    @property
    def now(self):
        return self.trainings[-1]

    def on_fit_start(self):
        self.trainings.append({"rates": [], "batch": None, "eval_batch": None, "schedulers": set(), "values": []})
        self.now["folder"] = self.trainer.model_path

    def on_before_training_step(self, batch):
        self.now["batch"] = self.now["batch"] or len(batch[0])

    def on_before_validation_step(self, batch):
        self.now["eval_batch"] = self.now["eval_batch"] or len(batch[0])

    def on_before_optimizer_step(self, optimizer):
        group = optimizer.param_groups[0]
        kind = type(getattr(optimizer, "optimizer", optimizer)).__name__
        self.now["rates"].append(group["lr"])
        self.now["optimizer"] = (kind, group["betas"], group["eps"], group["weight_decay"])

    def on_before_scheduler_step(self, scheduler):
        self.now["schedulers"].add(type(getattr(scheduler, "scheduler", scheduler)).__name__)

    def on_evaluation_end(self):
        self.now["values"].append(self.state.additional_metrics)

    def on_fit_end(self):
        self.now["steps"], self.now["epochs"] = self.state.global_step, self.state.epoch + 1


@pytest.fixture
def witness():
    return Witness()


@pytest.fixture
def search(regression, data, witness):
    """Keyword arguments -> a search over trainings on 16 samples, evaluated on 8, that the witness sees."""

    def make(module=regression, train=16, validation=None, **arguments):
        arguments.setdefault("dataloader_num_workers", 0)
        arguments.setdefault("callback", witness)
        validation = data(8, 1) if validation is None else validation
        return HyperParameterSearch(module, data(train), validation, **arguments)

    return make


class InOrder(optuna.samplers.BaseSampler):
    """Trial n gets the n-th of the values given for a name, from the first again after the last."""

    def __init__(self, **values):
        self._values = values

    def infer_relative_search_space(self, study, trial):
        return {}

    def sample_relative(self, study, trial, search_space):
        return {}

    def sample_independent(self, study, trial, param_name, param_distribution):
        values = self._values[param_name]
        return values[trial.number % len(values)]


@pytest.fixture
def in_order():
    """Name -> values: a sampler that tries them in this order."""
    return InOrder

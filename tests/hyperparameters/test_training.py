"""Every optimizer and every scheduler, chosen in every way, in a training that `Trainer.fit` runs."""

import math
from functools import partial

import pytest
import torch
import yaml
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import TensorDataset

from accmt import AcceleratorModule, Callback, ConfigError, HyperParameters, Optimizer, Scheduler, Trainer, set_seed
from accmt.loop.step import Stepper

OPTIMIZERS = {
    "ASGD": {"lr": 0.5},
    "Adadelta": {"lr": 10.0},
    "Adafactor": {"lr": 0.05, "scale_parameter": False, "relative_step": False},
    "Adagrad": {"lr": 0.1},
    "Adam": {"lr": 0.05},
    "AdamW": {"lr": 0.05},
    "Adamax": {"lr": 0.05},
    "LBFGS": {"lr": 0.1, "max_iter": 4},
    "NAdam": {"lr": 0.05},
    "RAdam": {"lr": 0.05},
    "RMSprop": {"lr": 0.02},
    "Rprop": {"lr": 0.02},
    "SGD": {"lr": 0.5},
    "SparseAdam": {"lr": 0.05},
}
WAYS = ("string", "attribute", "yaml", "dict")
STEPS, STEPS_PER_EPOCH, EPOCHS = 12, 6, 2


class Codes(AcceleratorModule):
    """Learns a number for each of four tokens; with sparse gradients for the optimizer that needs them."""

    def __init__(self, sparse):
        set_seed(0)
        self.model = nn.Embedding(4, 3, sparse=sparse)
        if not sparse:
            self.model = nn.Sequential(self.model, nn.Tanh(), nn.Linear(3, 3))

    def training_step(self, batch):
        return nn.functional.mse_loss(self.model(batch[0]), batch[1])


def codes():
    tokens = torch.arange(4).repeat(6)
    return TensorDataset(tokens, torch.linspace(-1, 1, 12).reshape(4, 3)[tokens])


def loss_of(module):
    with torch.no_grad():
        return module.training_step(codes().tensors).item()


def hyperparameters(way, folder, *, epochs=EPOCHS, optimizer=("SGD", {}), scheduler=None, per_epoch=False):
    """The same hyperparameters, told in one of the ways."""
    if way in ("string", "attribute"):
        chosen = [optimizer[0], scheduler and scheduler[0]]
        if way == "attribute":
            chosen = [getattr(Optimizer, chosen[0]), scheduler and getattr(Scheduler, chosen[1])]
        kwargs = scheduler and scheduler[1]
        return HyperParameters(epochs, None, 4, chosen[0], optimizer[1], chosen[1], kwargs, per_epoch)
    hps = {"epochs": epochs, "batch_size": 4, "optimizer": {"type": optimizer[0], **optimizer[1]}}
    if scheduler is not None:
        hps |= {"scheduler": {"type": scheduler[0], **scheduler[1]}, "step_scheduler_per_epoch": per_epoch}
    if way == "dict":
        return {"hps": hps}
    (folder / "hps.yaml").write_text(yaml.safe_dump({"hps": hps}))
    return folder / "hps.yaml"


def fit(hps, folder, module, callback=None, *, name="model", checkpoint_every=None, **arguments):
    clip = None if "sparse=True" in repr(module.model) else 1.0
    arguments |= {"clip_grad": clip, "callback": callback, "checkpoint_every": checkpoint_every}
    training = Trainer(hps, folder / name, disable_model_saving=True, dataloader_num_workers=0, **arguments)
    training.fit(module, codes())
    return training


class Seen(Callback):
    """The optimizer, and what the scheduler had made of each group before each step and after the last."""

    def __init__(self, *keys):
        super().__init__()
        self.keys, self.values, self.optimizer = keys, [], None

    def on_before_optimizer_step(self, optimizer):
        self.optimizer = optimizer.optimizer
        self.values.append(self._now())

    def on_fit_end(self):
        self.values.append(self._now())

    def _now(self):
        return [[float(group[key]) for key in self.keys] for group in self.optimizer.param_groups]


def test_these_are_all():
    assert set(OPTIMIZERS) == {name for name in vars(Optimizer) if not name.startswith("_")}
    # tests/loop/test_plateau.py has what follows a metric
    assert {*SCHEDULERS, "ReduceLROnPlateau"} == {name for name in vars(Scheduler) if not name.startswith("_")}


@pytest.mark.proves(
    "Trainer(hps_config)",
    "hyperparameters.HyperParameters",
    "hyperparameters.HyperParameters(optimizer)",
    "hyperparameters.Optimizer",
    "hyperparameters.Optimizer.*",
    "hyperparameters.Optimizer.*.step",
)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_trains(name, way, tmp_path):
    module, seen = Codes(sparse=name == "SparseAdam"), Seen("lr")
    before = loss_of(module)
    hps = hyperparameters(way, tmp_path, epochs=10, optimizer=(name, OPTIMIZERS[name]))
    fit(hps, tmp_path, module, seen)
    assert loss_of(module) < before / 2
    assert type(seen.optimizer).__name__ == name
    group = seen.optimizer.param_groups[0]
    assert {key: group[key] for key in OPTIMIZERS[name]} == OPTIMIZERS[name]


class Cut(Exception):
    """Ends a training in its middle."""


class Cutting(Callback):
    def on_before_training_step(self, batch):
        if self.state.global_step == 8:
            raise Cut


@pytest.mark.proves("hyperparameters.Optimizer.*")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_goes_on_from_a_checkpoint_as_if_nothing_had_been(name, tmp_path):
    hps = hyperparameters("string", tmp_path, optimizer=(name, OPTIMIZERS[name]))
    weights = []
    for folder in ("whole", "cut"):
        module = Codes(sparse=name == "SparseAdam")
        if folder == "cut":
            with pytest.raises(Cut):
                fit(hps, tmp_path, module, Cutting(), name=folder, checkpoint_every="3 steps")
            module = Codes(sparse=name == "SparseAdam")
        training = fit(hps, tmp_path, module, name=folder, checkpoint_every="3 steps")
        assert training.state.global_step == STEPS
        weights.append(module.model.state_dict())
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name])


def test_adafactor_with_learning_rates_of_its_own(tmp_path):
    module = Codes(sparse=False)
    before = loss_of(module)
    fit(hyperparameters("string", tmp_path, epochs=10, optimizer=("Adafactor", {})), tmp_path, module)
    assert loss_of(module) < before / 2


@pytest.mark.parametrize("way", WAYS)
def test_no_decay_through_a_training(way, tmp_path):
    """Without gradients (lr * weight_decay = 0.05), what is decayed shrinks and what is not stays."""

    class Still(Codes):
        def training_step(self, batch):
            return super().training_step(batch) * 0

    module = Still(sparse=False)
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    kwargs = {"lr": 0.1, "weight_decay": 0.5, "no_decay": ["bias", "0"]}
    fit(hyperparameters(way, tmp_path, optimizer=("AdamW", kwargs)), tmp_path, module)
    for name, value in module.model.state_dict().items():
        factor = 0.95**STEPS if name == "2.weight" else 1.0
        torch.testing.assert_close(value, before[name] * factor)


class Halving(torch.optim.Optimizer):
    """An optimizer that halves the parameters, whatever the gradients are."""

    def __init__(self, params, factor=0.5):
        super().__init__(params, {"lr": 1.0, "factor": factor})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter *= group["factor"]


def halving(params, **arguments):
    return Halving(params, **arguments)


@pytest.mark.parametrize("choice", [Halving, halving, partial(Halving, factor=0.25), f"{__name__}.Halving"])
def test_other_optimizers_train(choice, tmp_path):
    module = Codes(sparse=False)
    before = module.model[0].weight.detach().clone()
    hps = HyperParameters(EPOCHS, None, 4, choice, {} if isinstance(choice, partial) else {"factor": 0.25})
    fit(hps, tmp_path, module)
    torch.testing.assert_close(module.model[0].weight.detach(), before * 0.25**STEPS)


# name -> what the user gives, what makes the reference, and the arguments of the reference
SCHEDULERS = {
    "Constant": ({}, "get_constant_schedule", {}),
    "ConstantWithWarmup": (
        {"num_warmup_steps": 3},
        "get_constant_schedule_with_warmup",
        {"num_warmup_steps": 3},
    ),
    "CosineAnnealingLR": ({"eta_min": 0.1}, lr_scheduler.CosineAnnealingLR, {"T_max": STEPS, "eta_min": 0.1}),
    "CosineAnnealingWarmRestarts": (
        {"T_0": 3, "T_mult": 2},
        lr_scheduler.CosineAnnealingWarmRestarts,
        {"T_0": 3, "T_mult": 2},
    ),
    "CosineWithHardRestartsWithWarmup": (
        {"warmup_ratio": 0.25, "num_cycles": 2},
        "get_cosine_with_hard_restarts_schedule_with_warmup",
        {"num_warmup_steps": 3, "num_training_steps": STEPS, "num_cycles": 2},
    ),
    "CosineWithWarmup": (
        {"warmup_ratio": 0.25},
        "get_cosine_schedule_with_warmup",
        {"num_warmup_steps": 3, "num_training_steps": STEPS},
    ),
    "CyclicLR": (
        {"base_lr": 0.1, "max_lr": 0.5, "step_size_up": 4, "mode": "triangular2"},
        lr_scheduler.CyclicLR,
        {"base_lr": 0.1, "max_lr": 0.5, "step_size_up": 4, "mode": "triangular2"},
    ),
    "ExponentialLR": ({"gamma": 0.8}, lr_scheduler.ExponentialLR, {"gamma": 0.8}),
    "InverseSQRT": ({"warmup_ratio": 0.25}, "get_inverse_sqrt_schedule", {"num_warmup_steps": 3}),
    "LinearLR": ({"total_iters": 7}, lr_scheduler.LinearLR, {"total_iters": 7}),
    "LinearWithWarmup": (
        {"warmup_ratio": 0.25},
        "get_linear_schedule_with_warmup",
        {"num_warmup_steps": 3, "num_training_steps": STEPS},
    ),
    "OneCycleLR": ({"max_lr": 0.5}, lr_scheduler.OneCycleLR, {"max_lr": 0.5, "total_steps": STEPS}),
    "PolynomialDecayWithWarmup": (
        {"warmup_ratio": 0.25, "lr_end": 0.01, "power": 2.0},
        "get_polynomial_decay_schedule_with_warmup",
        {"num_warmup_steps": 3, "num_training_steps": STEPS, "lr_end": 0.01, "power": 2.0},
    ),
    "StepLR": ({"step_size": 5}, lr_scheduler.StepLR, {"step_size": 5}),
}
SGD = ("SGD", {"lr": 0.3, "momentum": 0.9})


def reference(make, kwargs, steps=STEPS):
    """Learning rate and momentum before each step and after the last, of torch's or transformers' scheduler alone."""
    if isinstance(make, str):
        make = getattr(pytest.importorskip("transformers.optimization"), make)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], **SGD[1])
    scheduler = make(optimizer, **kwargs)
    values = []
    for _ in range(steps):
        values.append([optimizer.param_groups[0][key] for key in ("lr", "momentum")])
        optimizer.step()
        scheduler.step()
    return [*values, [optimizer.param_groups[0][key] for key in ("lr", "momentum")]]


@pytest.mark.proves(
    "hyperparameters.HyperParameters(scheduler)",
    "hyperparameters.Scheduler",
    "hyperparameters.Scheduler.*",
    "hyperparameters.Scheduler.*.get_lr",
)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_each_scheduler_gives_the_learning_rates_of_its_reference(name, way, tmp_path):
    given, make, kwargs = SCHEDULERS[name]
    seen = Seen("lr", "momentum")
    hps = hyperparameters(way, tmp_path, optimizer=SGD, scheduler=(name, given))
    fit(hps, tmp_path, Codes(sparse=False), seen)
    expected = reference(make, kwargs)
    assert len(expected) == STEPS + 1
    assert [values for [values] in seen.values] == [pytest.approx(values, rel=1e-12) for values in expected]


@pytest.mark.proves("hyperparameters.HyperParameters(step_scheduler_per_epoch)")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_each_scheduler_per_epoch_counts_epochs(name, tmp_path):
    given, make, kwargs = SCHEDULERS[name]
    epochs, totals = 4, ("T_max", "total_steps", "num_training_steps")
    kwargs = {key: epochs if key in totals else value for key, value in kwargs.items()}
    if "warmup_ratio" in given:
        kwargs["num_warmup_steps"] = 1
    seen = Seen("lr", "momentum")
    hps = hyperparameters("dict", tmp_path, epochs=epochs, optimizer=SGD, scheduler=(name, given), per_epoch=True)
    fit(hps, tmp_path, Codes(sparse=False), seen)
    expected = reference(make, kwargs, epochs)
    expected = [values for values in expected[:-1] for _ in range(STEPS_PER_EPOCH)] + expected[-1:]
    assert [values for [values] in seen.values] == [pytest.approx(values, rel=1e-12) for values in expected]


@pytest.mark.proves("hyperparameters.Scheduler.*")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_each_scheduler_goes_on_from_a_checkpoint(name, tmp_path):
    given, make, kwargs = SCHEDULERS[name]
    hps = hyperparameters("string", tmp_path, optimizer=SGD, scheduler=(name, given))
    with pytest.raises(Cut):
        fit(hps, tmp_path, Codes(sparse=False), Cutting(), checkpoint_every="3 steps")
    seen = Seen("lr", "momentum")
    fit(hps, tmp_path, Codes(sparse=False), seen, checkpoint_every="3 steps")
    expected = reference(make, kwargs)[6:]
    assert [values for [values] in seen.values] == [pytest.approx(values, rel=1e-12) for values in expected]


def test_a_schedule_moves_both_groups_of_no_decay(tmp_path):
    given, make, kwargs = SCHEDULERS["LinearWithWarmup"]
    seen = Seen("lr", "momentum")
    optimizer = ("SGD", {**SGD[1], "no_decay": ["bias"]})
    fit(
        hyperparameters("yaml", tmp_path, optimizer=optimizer, scheduler=("LinearWithWarmup", given)),
        tmp_path,
        Codes(sparse=False),
        seen,
    )
    assert seen.values == [[pytest.approx(values)] * 2 for values in reference(make, kwargs)]


@pytest.mark.parametrize(
    ("arguments", "more"),
    [({}, ""), ({"clip_grad": None, "monitor": {"grad_norm": True}}, ", and no grad_norm in monitor")],
)
def test_a_sparse_gradient_cannot_be_clipped(tmp_path, arguments, more):
    hps = hyperparameters("string", tmp_path, optimizer=("SparseAdam", {}))
    training = Trainer(hps, tmp_path / "model", dataloader_num_workers=0, **arguments)
    with pytest.raises(ConfigError) as raised:
        training.fit(Codes(sparse=True), codes())
    assert str(raised.value) == (
        "1 mistake in fit(...):\n"
        f"  clip_grad: the gradients of Embedding are sparse and have no norm to clip: give clip_grad=None{more}"
    )
    assert not (tmp_path / "model").exists()


def test_the_learning_rate_of_an_optimizer_that_finds_its_own_is_nan(tmp_path, monkeypatch):
    """What a monitor asks for must not end the training."""
    steppers = []

    class Kept(Stepper):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            steppers.append(self)

    monkeypatch.setattr("accmt.setup.build.Stepper", Kept)
    fit(hyperparameters("string", tmp_path, optimizer=("Adafactor", {})), tmp_path, Codes(sparse=False))
    assert math.isnan(steppers[0].learning_rate)

"""HyperParameters: what it accepts, how it refuses, and how it is written down."""

import dataclasses
import functools
import inspect
import json
import pickle
import subprocess
import sys

import numpy
import pytest
import torch

from accmt.hyperparameters import ConfigError, HyperParameters, Optimizer, Scheduler, load_config

OPTIMIZERS = (
    "ASGD, Adadelta, Adafactor, Adagrad, Adam, AdamW, Adamax, LBFGS, NAdam, RAdam, RMSprop, Rprop, SGD, SparseAdam"
)
SCHEDULERS = (
    "Constant, ConstantWithWarmup, CosineAnnealingLR, CosineAnnealingWarmRestarts, CosineWithHardRestartsWithWarmup, "
    "CosineWithWarmup, CyclicLR, ExponentialLR, InverseSQRT, LinearLR, LinearWithWarmup, OneCycleLR, "
    "PolynomialDecayWithWarmup, ReduceLROnPlateau, StepLR"
)


def message(**values):
    with pytest.raises(ConfigError) as raised:
        HyperParameters(**values)
    return str(raised.value)


def test_signature_is_the_documented_one():
    parameters = inspect.signature(HyperParameters).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == {
        "epochs": 1,
        "max_steps": None,
        "batch_size": 1,
        "optimizer": "SGD",
        "optim_kwargs": None,
        "scheduler": None,
        "scheduler_kwargs": None,
        "step_scheduler_per_epoch": False,
    }
    assert list(parameters)[:4] == ["epochs", "max_steps", "batch_size", "optimizer"]


def test_values_by_position():
    hps = HyperParameters(3, 100, (8, 16), "AdamW", {"lr": 0.1}, "StepLR", {"step_size": 2}, True)
    assert (hps.epochs, hps.max_steps, hps.batch_size) == (3, 100, (8, 16))
    assert (hps.optimizer, hps.optim_kwargs) == ("AdamW", {"lr": 0.1})
    assert (hps.scheduler, hps.scheduler_kwargs, hps.step_scheduler_per_epoch) == ("StepLR", {"step_size": 2}, True)


@pytest.mark.parametrize(
    ("batch_size", "train", "evaluation"), [(4, 4, 4), ((4, 8), 4, 8), ([4, 8], 4, 8), (numpy.int64(4), 4, 4)]
)
def test_batch_sizes(batch_size, train, evaluation):
    hps = HyperParameters(batch_size=batch_size)
    assert (hps.train_batch_size, hps.eval_batch_size) == (train, evaluation)
    assert type(hps.train_batch_size) is int


def test_kwargs_given_are_copied():
    kwargs = {"lr": 0.1}
    hps = HyperParameters(optim_kwargs=kwargs)
    kwargs["lr"] = 0.2
    assert hps.optim_kwargs == {"lr": 0.1}


def test_values_do_not_change_but_can_be_replaced():
    hps = HyperParameters(3, optimizer="AdamW")
    with pytest.raises(dataclasses.FrozenInstanceError):
        hps.epochs = 5
    assert dataclasses.replace(hps, epochs=5) == HyperParameters(5, optimizer="AdamW")
    with pytest.raises(ConfigError):
        dataclasses.replace(hps, epochs=0)


def test_all_mistakes_are_told_at_once():
    said = message(
        epochs="3",
        max_steps=0,
        batch_size=(1, 2, 3),
        optimizer="AdmW",
        optim_kwargs=[1],
        scheduler="LinearWithWarmpu",
        scheduler_kwargs={1: 2},
        step_scheduler_per_epoch="yes",
    )
    assert said == (
        "8 mistakes in HyperParameters:\n"
        "  epochs: must be a whole number of at least 1, not '3' (str)\n"
        "  max_steps: must be a whole number of at least 1, or None, not 0 (int)\n"
        "  batch_size: must be a whole number of at least 1, or two of them (training, evaluation), "
        "not (1, 2, 3) (tuple)\n"
        f"  optimizer: unknown optimizer 'AdmW', did you mean 'AdamW'? Allowed are {OPTIMIZERS}, "
        "a subclass of torch.optim.Optimizer, or a callable (params, **arguments) that returns one\n"
        "  optim_kwargs: must be a mapping of argument names to values, not [1] (list)\n"
        "  scheduler: unknown scheduler 'LinearWithWarmpu', did you mean 'LinearWithWarmup'? "
        f"Allowed are {SCHEDULERS}, a subclass of torch.optim.lr_scheduler.LRScheduler, "
        "or a callable (optimizer, **arguments) that returns one\n"
        "  scheduler_kwargs: must be a mapping of argument names to values, not {1: 2} (dict)\n"
        "  step_scheduler_per_epoch: must be true or false, not 'yes' (str)"
    )


@pytest.mark.parametrize("value", [True, 0, -1, 1.0, "1", None, float("nan"), [1]])
def test_epochs_are_whole_and_positive(value):
    shown = "None" if value is None else f"{value!r} ({type(value).__name__})"
    assert message(epochs=value) == (
        f"1 mistake in HyperParameters:\n  epochs: must be a whole number of at least 1, not {shown}"
    )


@pytest.mark.parametrize("value", [True, (1,), (1, True), (0, 1), {1, 2}, [1, 2, 3], "12", None])
def test_batch_sizes_refused(value):
    assert message(batch_size=value).count("batch_size: must be a whole number of at least 1, or two of them") == 1


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("adamw", "unknown optimizer 'adamw', did you mean 'AdamW'?"),
        (Optimizer, "must be the name of an optimizer, a subclass of torch.optim.Optimizer, or a callable"),
        (torch.optim.Optimizer, "must be the name of an optimizer"),
        (torch.optim.lr_scheduler.StepLR, "must be the name of an optimizer"),
        (None, "must be the name of an optimizer"),
        ({"type": "AdamW"}, "must be the name of an optimizer"),
        ("torch.nn.Linear", "'torch.nn.Linear' is not a subclass of torch.optim.Optimizer"),
        ("torch.optim.Adan", "'torch.optim.Adan' is not a subclass of torch.optim.Optimizer"),
        ("os.system", "'os.system' is not a subclass of torch.optim.Optimizer"),
        ("sys.modules.nothing", "is not in an imported module; import sys.modules first, or give the class"),
    ],
)
def test_optimizers_refused(value, said):
    assert said in message(optimizer=value)


def test_an_optimizer_that_is_built_already_is_refused():
    built = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    assert message(optimizer=built) == (
        "1 mistake in HyperParameters:\n"
        "  optimizer: must be the class SGD, not an instance of it; the trainer builds it"
    )


def test_naming_a_module_does_not_import_it():
    assert "wave" not in sys.modules
    assert message(scheduler="wave.Wave") == (
        "1 mistake in HyperParameters:\n"
        "  scheduler: 'wave.Wave' is not in an imported module; import wave first, or give the class"
    )
    assert "wave" not in sys.modules


def test_equality_is_of_meaning():
    assert HyperParameters(optimizer="AdamW") == HyperParameters(optimizer=Optimizer.AdamW)
    assert HyperParameters(optimizer="torch.optim.AdamW") == HyperParameters(optimizer="AdamW")
    assert HyperParameters(scheduler="StepLR") == HyperParameters(scheduler=Scheduler.StepLR)
    assert HyperParameters(batch_size=(1, 2)) == HyperParameters(batch_size=[1, 2])
    assert HyperParameters(optim_kwargs={"lr": torch.tensor(0.5)}) == HyperParameters(optim_kwargs={"lr": 0.5})
    assert HyperParameters(optim_kwargs={"betas": (0.9, 0.99)}) == HyperParameters(optim_kwargs={"betas": [0.9, 0.99]})
    assert HyperParameters(optimizer="AdamW") != HyperParameters(optimizer="Adam")
    assert HyperParameters(optimizer=lambda params: 1) != HyperParameters(optimizer=lambda params: 1)
    assert HyperParameters(1) != HyperParameters(2)
    assert HyperParameters() != 1


def test_pickled_and_back():
    hps = HyperParameters(3, optimizer=Optimizer.Adafactor, scheduler=Scheduler.CosineWithWarmup)
    assert pickle.loads(pickle.dumps(hps)) == hps
    with pytest.raises(ConfigError) as raised:
        HyperParameters(0)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


class OwnSGD(torch.optim.SGD):
    pass


def own_factory(params, **arguments):
    return torch.optim.SGD(params, **arguments)


def test_written_down():
    hps = HyperParameters(
        epochs=2,
        batch_size=(8, 16),
        optimizer=Optimizer.AdamW,
        optim_kwargs={"lr": torch.tensor(0.5), "betas": (0.9, 0.99), "eps": numpy.float64(1e-8)},
        scheduler=Scheduler.CyclicLR,
        scheduler_kwargs={"scale_fn": own_factory},
    )
    assert hps.to_dict() == {
        "epochs": 2,
        "max_steps": None,
        "batch_size": [8, 16],
        "optimizer": {"type": "AdamW", "lr": 0.5, "betas": [0.9, 0.99], "eps": 1e-8},
        "scheduler": {"type": "CyclicLR", "scale_fn": f"{__name__}.own_factory"},
        "step_scheduler_per_epoch": False,
    }
    assert json.loads(json.dumps(hps.to_dict())) == hps.to_dict()


def test_own_classes_and_factories_are_written_by_their_qualified_names():
    assert HyperParameters(optimizer=OwnSGD).to_dict()["optimizer"] == {"type": f"{__name__}.OwnSGD"}
    assert HyperParameters(optimizer=own_factory).to_dict()["optimizer"] == {"type": f"{__name__}.own_factory"}
    partial = functools.partial(torch.optim.AdamW, lr=0.1)
    written = HyperParameters(optimizer=partial).to_dict()["optimizer"]
    assert written == {"type": "functools.partial(torch.optim.adamw.AdamW)"}


@pytest.mark.parametrize(
    "hps",
    [
        HyperParameters(),
        HyperParameters(3, 7, (1, 2), Optimizer.Adafactor, {"lr": 1e-3}, "StepLR", {"step_size": 3}, True),
        HyperParameters(optimizer=torch.optim.Adafactor, scheduler=torch.optim.lr_scheduler.MultiStepLR),
        HyperParameters(scheduler_kwargs={"gamma": 0.5}),
        HyperParameters(optimizer="SGD", optim_kwargs={"type": "an argument", "lr": 1.0}),
    ],
)
def test_what_is_written_can_be_read_back(hps, tmp_path):
    assert load_config(json.loads(json.dumps(hps.to_dict()))).hps == hps
    (tmp_path / "hps.yaml").write_text(json.dumps({"hps": hps.to_dict()}))
    assert load_config(tmp_path / "hps.yaml").hps == hps


def test_importing_does_not_import_transformers_or_accelerate():
    code = (
        "import sys; import accmt.hyperparameters as h; h.HyperParameters(1, optimizer='Adafactor').problems(); "
        "print([name for name in ('transformers', 'accelerate') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

"""Every argument of every optimizer of the reference: through a training it does what it does in a loop by hand."""

import inspect
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from accmt import AcceleratorModule, Callback, HyperParameters, Optimizer, Trainer

SIGNATURES = json.loads(Path(__file__).with_name("reference.json").read_text())["signatures"]
PREFIX = "accmt.hyperparameters.Optimizer."
NAMES = [path.removeprefix(PREFIX) for path in SIGNATURES if path.startswith(PREFIX) and path.count(".") == 3]
ROWS = [(name, argument) for name in NAMES for argument in SIGNATURES[PREFIX + name] if argument not in ("params", "*")]

# argument -> a value that is not the default; for one optimizer, where another value is needed.
VALUES = {
    "lr": 0.07,
    "weight_decay": 0.3,
    "betas": (0.5, 0.8),
    "eps": 0.01,
    "amsgrad": True,
    "maximize": True,
    "foreach": True,
    "fused": True,
    "capturable": True,
    "differentiable": True,
    "momentum": 0.9,
    "dampening": 0.5,
    "nesterov": True,
    "lambd": 0.5,
    "alpha": 0.5,
    "t0": 2,
    "rho": 0.5,
    "lr_decay": 0.5,
    "initial_accumulator_value": 0.1,
    "momentum_decay": 0.5,
    "decoupled_weight_decay": True,
    "centered": True,
    "etas": (0.3, 1.5),
    "step_sizes": (0.001, 0.011),
    "clip_threshold": 0.1,
    "decay_rate": -0.3,
    "beta1": 0.9,
    "scale_parameter": False,
    "warmup_init": True,
    "Adafactor.lr": 0.02,
    "Adafactor.eps": (0.1, 0.5),
    "Adafactor.relative_step": False,
    "Rprop.lr": 0.02,
}
# What has to be given beside an argument for it to matter, or to be allowed at all.
BESIDE = {
    "Adafactor.lr": {"relative_step": False, "lr": 0.01},
    "Adafactor.relative_step": {"lr": 0.01},
    "ASGD.alpha": {"lambd": 1.0, "lr": 0.3},
    "SGD.dampening": {"momentum": 0.9},
    "SGD.nesterov": {"momentum": 0.9},
    "decoupled_weight_decay": {"weight_decay": 0.3},
    "amsgrad": {"betas": (0.5, 0.2)},
}
# How something is computed, not what: the result is that of the default. Some need a GPU, or parameters that are no
# leaves, and torch rejects them here; a training ends with the same error then.
MANNERS = ("foreach", "fused", "capturable", "differentiable")


def of(table, name, argument, default=None):
    return table.get(f"{name}.{argument}", table.get(argument, default))


class Codes(AcceleratorModule):
    """Learns three numbers for each of four tokens; the gradients are sparse for the optimizer that needs that."""

    def __init__(self, name):
        self.model = nn.Embedding(4, 3, sparse=name == "SparseAdam")
        with torch.no_grad():
            self.model.weight.copy_(torch.linspace(-1, 1, 12).reshape(4, 3))

    def training_step(self, batch):
        return nn.functional.mse_loss(self.model(batch[0]), batch[1])


def codes():
    """Twelve batches; the targets alternate, so that gradients turn."""
    tokens = torch.arange(4).repeat(12)
    targets = torch.cos(torch.arange(48.0) * 0.7).unsqueeze(1).expand(48, 3).contiguous()
    return TensorDataset(tokens, targets)


def hand_made(name):
    if name == "Adafactor":
        return pytest.importorskip("transformers.optimization").Adafactor
    return getattr(torch.optim, name)


def by_hand(name, arguments):
    """The weights and the state of the optimizer after a loop in plain torch, or the error of one; steps are fused
    where torch can and no argument says how they are made."""
    module, kind = Codes(name), hand_made(name)
    if "fused" in inspect.signature(kind).parameters and not arguments.keys() & set(MANNERS):
        arguments = {**arguments, "fused": True}
    try:
        optimizer = kind(module.model.parameters(), **arguments)
        tokens, targets = codes().tensors
        for start in range(0, 48, 4):
            module.training_step((tokens[start : start + 4], targets[start : start + 4])).backward()
            optimizer.step()
            optimizer.zero_grad()
    except Exception as error:
        return type(error), str(error)
    return module.model.weight.detach(), optimizer.state_dict()


class Kept(Callback):
    optimizer = None

    def on_before_optimizer_step(self, optimizer):
        self.optimizer = optimizer.optimizer


def trained(name, arguments, folder):
    """The same of a training."""
    module, kept = Codes(name), Kept()
    hps = HyperParameters(1, None, 4, name, arguments)
    training = Trainer(
        hps,
        folder,
        clip_grad=None,
        shuffle_train=False,
        callback=kept,
        dataloader_num_workers=0,
        checkpoint_every=None,
        disable_model_saving=True,
    )
    try:
        training.fit(module, codes())
    except Exception as error:
        return type(error), str(error)
    return module.model.weight.detach(), kept.optimizer.state_dict()


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one.to_dense(), other.to_dense())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def group_of(state):
    [group] = state["param_groups"]
    return {key: value for key, value in group.items() if key != "params"}


@pytest.mark.proves("hyperparameters.HyperParameters(optim_kwargs)", "hyperparameters.Optimizer.*(*)")
@pytest.mark.parametrize(("name", "argument"), ROWS, ids=[f"{name}-{argument}" for name, argument in ROWS])
def test_an_argument_of_an_optimizer(name, argument, tmp_path):
    beside, value = of(BESIDE, name, argument, {}), of(VALUES, name, argument)
    default = by_hand(name, beside)
    expected = by_hand(name, {**beside, argument: value})
    found = trained(name, {**beside, argument: value}, tmp_path / "model")
    assert equal(found, expected)
    if isinstance(found[0], type):
        assert argument in MANNERS, f"{argument} is refused: {found[1]}"
        return
    assert group_of(found[1])[argument] == value
    if isinstance(default[0], type):
        return  # what is given beside it is refused without it
    if argument in MANNERS:
        torch.testing.assert_close(found[0], default[0])
    else:
        assert not equal((found[0], found[1]["state"]), (default[0], default[1]["state"]))


@pytest.mark.proves("hyperparameters.Optimizer.*(params)")
@pytest.mark.parametrize("name", NAMES)
def test_the_parameters_of_an_optimizer_are_those_of_the_model(name, tmp_path):
    """All that require a gradient; they cannot be given beside it."""
    weight, state = trained(name, {"lr": 0.01, **({"relative_step": False} if name == "Adafactor" else {})}, tmp_path)
    assert len(state["param_groups"][0]["params"]) == 1
    assert not torch.equal(weight, Codes(name).model.weight)
    assert HyperParameters(optimizer=name, optim_kwargs={"params": []}).problems() == [
        "optim_kwargs.params: the trainer gives it, remove it"
    ]


@pytest.mark.proves("hyperparameters.Optimizer.*.step(closure)")
@pytest.mark.parametrize("name", NAMES)
def test_a_step_with_a_closure_returns_its_loss(name):
    """Every optimizer may be stepped by hand, too: `Optimizer.Adam(parameters).step(closure)`."""
    module = Codes(name)
    optimizer = getattr(Optimizer, name)(module.model.parameters())
    tokens, targets = codes().tensors
    before = module.model.weight.detach().clone()

    @torch.enable_grad()  # transformers' Adafactor leaves that to the closure
    def closure():
        optimizer.zero_grad()
        loss = module.training_step((tokens, targets))
        loss.backward()
        return loss

    for _ in range(2):
        loss = optimizer.step(closure)
    assert loss.item() > 0
    assert optimizer.step() is None
    assert not torch.equal(module.model.weight, before)


@pytest.mark.proves("hyperparameters.Optimizer.Adagrad.share_memory")
def test_the_sums_of_adagrad_can_be_shared_between_processes():
    optimizer = Optimizer.Adagrad(Codes("Adagrad").model.parameters())
    [state] = optimizer.state.values()
    assert not state["sum"].is_shared()
    optimizer.share_memory()
    assert state["sum"].is_shared()

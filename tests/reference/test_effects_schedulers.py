"""Every argument of every scheduler of the reference: through a training it gives the rates that it gives by itself."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from accmt import Callback, ConfigError, Scheduler

SIGNATURES = json.loads(Path(__file__).with_name("reference.json").read_text())["signatures"]
PREFIX = "accmt.hyperparameters.Scheduler."
NAMES = [path.removeprefix(PREFIX) for path in SIGNATURES if path.startswith(PREFIX) and path.count(".") == 3]
OF_TRANSFORMERS = {
    "Constant": "get_constant_schedule",
    "ConstantWithWarmup": "get_constant_schedule_with_warmup",
    "CosineWithHardRestartsWithWarmup": "get_cosine_with_hard_restarts_schedule_with_warmup",
    "CosineWithWarmup": "get_cosine_schedule_with_warmup",
    "InverseSQRT": "get_inverse_sqrt_schedule",
    "LinearWithWarmup": "get_linear_schedule_with_warmup",
    "PolynomialDecayWithWarmup": "get_polynomial_decay_schedule_with_warmup",
}
ROWS = [
    (name, argument)
    for name in NAMES
    for argument in SIGNATURES[PREFIX + name]
    if argument not in ("optimizer", "last_epoch")
]
STEPS = 12
SGD = {"lr": 0.3, "momentum": 0.9}

# What is given to a scheduler that needs it, and the value of each argument that is tried in its place.
NEEDED = {
    "ConstantWithWarmup": {"num_warmup_steps": 3},
    "CosineAnnealingWarmRestarts": {"T_0": 5},
    "CosineWithHardRestartsWithWarmup": {"num_warmup_steps": 3},
    "CosineWithWarmup": {"num_warmup_steps": 3},
    "CyclicLR": {"base_lr": 0.1, "max_lr": 0.5, "step_size_up": 4},
    "ExponentialLR": {"gamma": 0.9},
    "InverseSQRT": {"num_warmup_steps": 3},
    "LinearWithWarmup": {"num_warmup_steps": 3},
    "OneCycleLR": {"max_lr": 0.5},
    "PolynomialDecayWithWarmup": {"num_warmup_steps": 3},
    "StepLR": {"step_size": 3},
}
VALUES = {
    "num_warmup_steps": 5,
    "num_training_steps": 20,
    "T_max": 7,
    "eta_min": 0.05,
    "T_0": 3,
    "T_mult": 2,
    "num_cycles": 2,
    "base_lr": 0.2,
    "max_lr": 0.7,
    "step_size_up": 2,
    "step_size_down": 2,
    "mode": "triangular2",
    "gamma": 0.5,
    "scale_fn": lambda x: 1 / (1 + x),
    "scale_mode": "iterations",
    "cycle_momentum": False,
    "base_momentum": 0.5,
    "max_momentum": 0.99,
    "timescale": 2,
    "start_factor": 0.1,
    "end_factor": 0.5,
    "total_iters": 9,
    "total_steps": 15,
    "epochs": 5,
    "steps_per_epoch": 4,
    "pct_start": 0.7,
    "anneal_strategy": "linear",
    "div_factor": 5.0,
    "final_div_factor": 10.0,
    "three_phase": True,
    "lr_end": 0.02,
    "power": 3.0,
    "step_size": 5,
}
BESIDE = {
    "CyclicLR.gamma": {"mode": "exp_range"},
    "CyclicLR.scale_mode": {"scale_fn": lambda x: 1 / (1 + x)},
    "OneCycleLR.epochs": {"steps_per_epoch": 3},
    "OneCycleLR.steps_per_epoch": {"epochs": 4},
}
TOTALS = ("T_max", "num_training_steps", "total_steps")


class Rates(Callback):
    """Learning rate and momentum before each step, and after the last."""

    def __init__(self):
        super().__init__()
        self.seen, self.optimizer = [], None

    def on_before_optimizer_step(self, optimizer):
        self.optimizer = optimizer
        self.on_fit_end()

    def on_fit_end(self):
        self.seen.append([self.optimizer.param_groups[0][key] for key in ("lr", "momentum")])


def by_hand(name, arguments):
    """The same of the scheduler of torch or transformers, with the length of the training where it asks for one."""
    if name in OF_TRANSFORMERS:
        make = getattr(pytest.importorskip("transformers.optimization"), OF_TRANSFORMERS[name])
    else:
        make = getattr(lr_scheduler, name)
    told = not {"epochs", "steps_per_epoch"} <= arguments.keys()
    totals = {total: STEPS for total in TOTALS if total in SIGNATURES[PREFIX + name] and told}
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], **SGD)
    scheduler = make(optimizer, **{**totals, **arguments})
    seen = []
    for _ in range(STEPS):
        seen.append([optimizer.param_groups[0][key] for key in ("lr", "momentum")])
        optimizer.step()
        scheduler.step()
    return [*seen, [optimizer.param_groups[0][key] for key in ("lr", "momentum")]]


@pytest.fixture
def train(trainer, regression, data):
    """The name of a scheduler and its arguments -> what a training of twelve steps made of the optimizer."""

    def run(name, arguments):
        rates = Rates()
        hps = {"scheduler": name, "scheduler_kwargs": arguments}

        class Module(regression):
            def get_optimizer(self):
                return torch.optim.SGD(self.model.parameters(), **SGD)

        trainer(epochs=2, callback=rates, hps=hps, checkpoint_every=None).fit(Module(), data(24))
        return rates.seen

    return run


@pytest.mark.proves("hyperparameters.HyperParameters(scheduler_kwargs)", "hyperparameters.Scheduler.*(*)")
@pytest.mark.parametrize(("name", "argument"), ROWS, ids=[f"{name}-{argument}" for name, argument in ROWS])
def test_an_argument_of_a_scheduler(train, name, argument):
    given = {**NEEDED.get(name, {}), **BESIDE.get(f"{name}.{argument}", {})}
    without = by_hand(name, NEEDED.get(name, {}) if argument in ("epochs", "steps_per_epoch") else given)
    given[argument] = VALUES[argument]
    expected = by_hand(name, given)
    assert train(name, given) == [pytest.approx(values, rel=1e-12) for values in expected]
    assert [pytest.approx(values, rel=1e-12) for values in expected] != without


@pytest.mark.proves("hyperparameters.Scheduler.*(optimizer)")
@pytest.mark.parametrize("name", NAMES)
def test_the_optimizer_of_a_scheduler_is_that_of_the_training(train, name):
    """With all defaults; it cannot be given beside it."""
    given = NEEDED.get(name, {})
    expected = by_hand(name, given)
    assert train(name, given) == [pytest.approx(values, rel=1e-12) for values in expected]
    with pytest.raises(ConfigError) as caught:
        train(name, {**given, "optimizer": 1})
    assert "scheduler_kwargs.optimizer: the trainer gives it, remove it" in str(caught.value)


@pytest.mark.proves("hyperparameters.Scheduler.*(last_epoch)")
@pytest.mark.parametrize("name", NAMES)
def test_the_last_epoch_is_where_a_schedule_goes_on(name):
    """After a step count of an earlier schedule: for it the groups of the optimizer have to know their first rate."""
    values = [by_steps(name, 4), by_steps(name, None)]
    assert values[0] == [pytest.approx(rates, rel=1e-9) for rates in values[1]]


def by_steps(name, last_epoch):
    """The rates of the sixth and later steps: of an object that goes on at `last_epoch`, or of one from the start."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], **SGD)
    arguments = {**{total: STEPS for total in TOTALS if total in SIGNATURES[PREFIX + name]}, **NEEDED.get(name, {})}
    first = getattr(Scheduler, name)(optimizer, **arguments)
    seen = []
    for step in range(10):
        if step == 5 and last_epoch is not None:
            first = getattr(Scheduler, name)(optimizer, **arguments, last_epoch=first.last_epoch - 1)
        optimizer.step()
        first.step()
        seen.append([optimizer.param_groups[0][key] for key in ("lr", "momentum")])
    return seen[5:]


@pytest.mark.proves("hyperparameters.Scheduler.*(last_epoch)")
@pytest.mark.parametrize("name", NAMES)
def test_a_training_that_starts_anew_starts_at_the_beginning(train, name):
    """`last_epoch` reaches the scheduler, which refuses to go on where the optimizer has not begun; -1 is the start."""
    given = NEEDED.get(name, {})
    with pytest.raises(ConfigError) as caught:
        train(name, {**given, "last_epoch": 4})
    assert f"scheduler_kwargs: {name} rejects them: " in str(caught.value)
    assert "initial_lr" in str(caught.value)
    assert train(name, {**given, "last_epoch": -1}) == [pytest.approx(v, rel=1e-12) for v in by_hand(name, given)]


@pytest.mark.proves("hyperparameters.Scheduler.*.get_lr")
def test_those_without_a_warmup_are_the_classes_of_torch():
    """So their methods are torch's."""
    for name in set(NAMES) - OF_TRANSFORMERS.keys():
        assert getattr(Scheduler, name) is getattr(lr_scheduler, name)


@pytest.mark.proves(
    "hyperparameters.Scheduler.CosineAnnealingWarmRestarts.step",
    "hyperparameters.Scheduler.CosineAnnealingWarmRestarts.step(epoch)",
)
def test_warm_restarts_may_be_told_where_they_stand():
    """`step(epoch)` sets the place, fractions of an epoch too; the rate is that of the cosine there."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = Scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=4)
    optimizer.step()
    scheduler.step(2)
    assert scheduler.get_last_lr() == pytest.approx([0.5])
    scheduler.step(4.0)
    assert scheduler.get_last_lr() == pytest.approx([1.0])


@pytest.mark.proves(
    "hyperparameters.Scheduler.CyclicLR.load_state_dict",
    "hyperparameters.Scheduler.CyclicLR.load_state_dict(state_dict)",
    "hyperparameters.Scheduler.CyclicLR.scale_fn",
    "hyperparameters.Scheduler.CyclicLR.scale_fn(x)",
    "hyperparameters.Scheduler.CyclicLR.state_dict",
)
@pytest.mark.filterwarnings("ignore:To get the last learning rate:UserWarning")
def test_a_cyclic_schedule_is_written_down_and_read_back():
    """Its state without the optimizer; `scale_fn` scales the amplitude of each cycle."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], **SGD)
    scheduler = Scheduler.CyclicLR(optimizer, 0.1, 0.5, step_size_up=2, mode="triangular2")
    assert (scheduler.scale_fn(1), scheduler.scale_fn(2)) == (1.0, 0.5)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    state = scheduler.state_dict()
    assert "optimizer" not in state
    other = Scheduler.CyclicLR(optimizer, 0.1, 0.5, step_size_up=2, mode="triangular2")
    other.load_state_dict(state)
    assert other.get_lr() == scheduler.get_lr() == pytest.approx([0.3])

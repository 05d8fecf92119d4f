"""Schedulers: their learning rates over a training, what the trainer fills in, and what is refused."""

import inspect
import json

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from accmt.hyperparameters import ConfigError, HyperParameters, Scheduler

NAMES = [name for name in vars(Scheduler) if not name.startswith("_")]
SAME_AS_TRANSFORMERS = {
    "Constant": "get_constant_schedule",
    "ConstantWithWarmup": "get_constant_schedule_with_warmup",
    "CosineWithHardRestartsWithWarmup": "get_cosine_with_hard_restarts_schedule_with_warmup",
    "CosineWithWarmup": "get_cosine_schedule_with_warmup",
    "InverseSQRT": "get_inverse_sqrt_schedule",
    "LinearWithWarmup": "get_linear_schedule_with_warmup",
    "PolynomialDecayWithWarmup": "get_polynomial_decay_schedule_with_warmup",
}
REQUIRED = {
    "CosineAnnealingWarmRestarts": {"T_0": 3},
    "CyclicLR": {"base_lr": 0.1, "max_lr": 0.5},
    "ExponentialLR": {"gamma": 0.9},
    "OneCycleLR": {"max_lr": 0.5},
    "ReduceLROnPlateau": {"patience": 1},
    "StepLR": {"step_size": 3},
}


def sgd(lr=0.5):
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)


def build(scheduler, kwargs=None, *, optimizer=None, steps_per_epoch=5, total_steps=10, epochs=2, **values):
    hps = HyperParameters(scheduler=scheduler, scheduler_kwargs=kwargs, **values)
    return hps.build_scheduler(
        optimizer or sgd(), steps_per_epoch=steps_per_epoch, total_steps=total_steps, epochs=epochs
    )


def refusal(*args, **values):
    with pytest.raises(ConfigError) as raised:
        build(*args, **values)
    return str(raised.value)


def rates(scheduler, steps=10):
    seen = []
    for _ in range(steps):
        seen.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step(*([1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
    return seen


def test_attributes():
    assert len(NAMES) == 15
    assert Scheduler.StepLR is lr_scheduler.StepLR
    with pytest.raises(TypeError, match=r"use one of its attributes, such as Scheduler.LinearWithWarmup"):
        Scheduler()


@pytest.mark.parametrize(("ours", "theirs"), SAME_AS_TRANSFORMERS.items())
def test_signatures_are_those_of_transformers(ours, theirs):
    optimization = pytest.importorskip("transformers.optimization")
    expected = inspect.signature(getattr(optimization, theirs)).parameters.values()
    found = inspect.signature(getattr(Scheduler, ours)).parameters.values()
    assert [(p.name, p.default) for p in found] == [(p.name, p.default) for p in expected]


@pytest.mark.parametrize(
    ("ours", "kwargs"),
    [
        ("Constant", {}),
        ("ConstantWithWarmup", {"num_warmup_steps": 4}),
        ("ConstantWithWarmup", {"num_warmup_steps": 0}),
        ("LinearWithWarmup", {"num_warmup_steps": 4, "num_training_steps": 20}),
        ("LinearWithWarmup", {"num_warmup_steps": 0, "num_training_steps": 20}),
        ("LinearWithWarmup", {"num_warmup_steps": 20, "num_training_steps": 20}),
        ("CosineWithWarmup", {"num_warmup_steps": 4, "num_training_steps": 20}),
        ("CosineWithWarmup", {"num_warmup_steps": 0, "num_training_steps": 20, "num_cycles": 1.75}),
        ("CosineWithHardRestartsWithWarmup", {"num_warmup_steps": 4, "num_training_steps": 20}),
        ("CosineWithHardRestartsWithWarmup", {"num_warmup_steps": 2, "num_training_steps": 20, "num_cycles": 3}),
        ("InverseSQRT", {"num_warmup_steps": 4}),
        ("InverseSQRT", {"num_warmup_steps": 0}),
        ("InverseSQRT", {"num_warmup_steps": 4, "timescale": 9}),
        ("PolynomialDecayWithWarmup", {"num_warmup_steps": 4, "num_training_steps": 20}),
        ("PolynomialDecayWithWarmup", {"num_warmup_steps": 4, "num_training_steps": 20, "lr_end": 0.1, "power": 2.5}),
    ],
)
def test_learning_rates_are_those_of_transformers(ours, kwargs):
    optimization = pytest.importorskip("transformers.optimization")
    expected = rates(getattr(optimization, SAME_AS_TRANSFORMERS[ours])(sgd(), **kwargs), 25)
    found = rates(build(ours, kwargs, total_steps=20), 25)
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_each_scheduler_can_be_built_resumed_and_kept_as_json(name):
    kwargs = dict(REQUIRED.get(name, {}))
    if name in SAME_AS_TRANSFORMERS and name != "Constant":
        kwargs["warmup_ratio"] = 0.2
    assert HyperParameters(scheduler=name, scheduler_kwargs=kwargs).problems() == []
    scheduler = build(name, kwargs)
    rates(scheduler, 3)
    state = json.loads(json.dumps(scheduler.state_dict()))
    expected = rates(scheduler, 6)
    resumed = build(name, kwargs)
    resumed.load_state_dict(state)
    for group, lr in zip(resumed.optimizer.param_groups, state["_last_lr"], strict=True):
        group["lr"] = lr
    assert rates(resumed, 6) == pytest.approx(expected)


def test_no_scheduler():
    assert build(None) is None


def test_polynomial_ends_at_lr_end_in_each_group():
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": parameters[:1], "lr": 1.0}, {"params": parameters[1:]}], lr=0.5)
    scheduler = build("PolynomialDecayWithWarmup", {"num_warmup_steps": 0, "lr_end": 0.1}, optimizer=optimizer)
    rates(scheduler, 10)
    assert scheduler.get_last_lr() == pytest.approx([0.1, 0.1])


def test_a_learning_rate_kept_in_a_tensor():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=torch.tensor(0.5))
    scheduler = build("PolynomialDecayWithWarmup", {"num_warmup_steps": 0, "lr_end": 0.1}, optimizer=optimizer)
    assert float(rates(scheduler, 10)[5]) == pytest.approx(0.3)


def test_the_total_is_filled_in():
    assert rates(build("LinearWithWarmup", {"num_warmup_steps": 0}), 11)[-1] == 0.0
    assert build("CosineAnnealingLR").T_max == 10
    assert build("OneCycleLR", {"max_lr": 0.5}).total_steps == 10


def test_a_total_given_goes_before():
    assert rates(build("LinearWithWarmup", {"num_warmup_steps": 0, "num_training_steps": 4}), 5)[-1] == 0.0
    assert build("CosineAnnealingLR", {"T_max": 4}).T_max == 4
    assert build("OneCycleLR", {"max_lr": 0.5, "total_steps": 4}).total_steps == 4
    assert build("OneCycleLR", {"max_lr": 0.5, "epochs": 3, "steps_per_epoch": 7}).total_steps == 21


def test_in_epochs_where_the_scheduler_counts_them():
    scheduler = build("CosineAnnealingLR", epochs=7, step_scheduler_per_epoch=True, total_steps=None)
    assert scheduler.T_max == 7
    half = build("LinearWithWarmup", {"warmup_ratio": 0.5}, epochs=4, step_scheduler_per_epoch=True)
    assert rates(half, 5) == pytest.approx([0.0, 0.25, 0.5, 0.25, 0.0])


def test_a_total_that_is_unknown_comes_from_max_steps_or_the_epochs():
    assert build("CosineAnnealingLR", total_steps=None, steps_per_epoch=None, max_steps=33).T_max == 33
    assert build("CosineAnnealingLR", total_steps=None, steps_per_epoch=4, epochs=3).T_max == 12


@pytest.mark.parametrize(
    ("name", "kwargs", "argument"),
    [
        ("LinearWithWarmup", {"num_warmup_steps": 0}, "num_training_steps"),
        ("CosineAnnealingLR", {}, "T_max"),
        ("OneCycleLR", {"max_lr": 1.0}, "total_steps"),
        ("InverseSQRT", {"warmup_ratio": 0.1}, "num_warmup_steps"),
    ],
)
def test_a_total_that_nobody_knows(name, kwargs, argument):
    assert refusal(name, kwargs, total_steps=None, steps_per_epoch=None) == (
        "1 mistake in HyperParameters:\n"
        f"  scheduler_kwargs.{argument}: {name} needs the number of optimizer steps, which is unknown because the "
        "training data have no length. Give it in scheduler_kwargs, or set max_steps"
    )


def test_no_total_is_asked_for_where_none_is_needed():
    unknown = {"total_steps": None, "steps_per_epoch": None}
    assert rates(build("StepLR", {"step_size": 1}, **unknown), 2) == pytest.approx([0.5, 0.05])
    assert build("LinearWithWarmup", {"warmup_ratio": 0.5, "num_training_steps": 4}, **unknown)
    assert build("OneCycleLR", {"max_lr": 1.0, "epochs": 2, "steps_per_epoch": 2}, **unknown).total_steps == 4


@pytest.mark.parametrize(("ratio", "total", "warmup"), [(0, 10, 0), (0.07, 100, 7), (0.1, 25, 3), (1, 10, 10)])
def test_warmup_ratio_is_rounded_up(ratio, total, warmup):
    told = {}

    def factory(optimizer, num_warmup_steps, num_training_steps):
        told.update(warmup=num_warmup_steps, total=num_training_steps)
        return lr_scheduler.ConstantLR(optimizer)

    build(factory, {"warmup_ratio": ratio}, total_steps=total)
    assert told == {"warmup": warmup, "total": total}


def test_warmup_ratio_is_of_the_total_given():
    by_ratio = rates(build("LinearWithWarmup", {"warmup_ratio": 0.25, "num_training_steps": 8}))
    assert by_ratio == rates(build("LinearWithWarmup", {"num_warmup_steps": 2, "num_training_steps": 8}))


def test_factories_get_what_they_name():
    told = {}

    def factory(optimizer, steps_per_epoch, epochs, total_steps=None, T_max=5, **others):
        told.update(others, steps_per_epoch=steps_per_epoch, epochs=epochs, total_steps=total_steps, T_max=T_max)
        return lr_scheduler.ConstantLR(optimizer)

    hps = HyperParameters(scheduler=factory, scheduler_kwargs={"warmup_ratio": 7})
    assert hps.problems() == []
    hps.build_scheduler(sgd(), steps_per_epoch=5, total_steps=10, epochs=2)
    assert told == {"steps_per_epoch": 5, "epochs": 2, "total_steps": 10, "T_max": 5, "warmup_ratio": 7}


@pytest.mark.parametrize(
    ("scheduler", "kwargs", "said"),
    [
        (
            "StepLR",
            {"step_sise": 3},
            [
                "scheduler_kwargs.step_sise: StepLR has no such argument, did you mean 'step_size'? "
                "It takes step_size, gamma, last_epoch",
                "scheduler_kwargs.step_size: missing, StepLR cannot be built without it. Give it in scheduler_kwargs",
            ],
        ),
        (
            "LinearWithWarmup",
            {},
            [
                "scheduler_kwargs.num_warmup_steps: missing, LinearWithWarmup cannot be built without it. "
                "Give it or warmup_ratio in scheduler_kwargs"
            ],
        ),
        (
            "LinearWithWarmup",
            {"warmup_ratio": 0.1, "num_warmup_steps": 3},
            ["scheduler_kwargs.warmup_ratio: given together with num_warmup_steps, keep one of them"],
        ),
        (
            "LinearWithWarmup",
            {"warmup_ratio": 10},
            ["scheduler_kwargs.warmup_ratio: must be a number from 0 to 1, not 10 (int)"],
        ),
        (
            "LinearWithWarmup",
            {"warmup_ratio": None},
            ["scheduler_kwargs.warmup_ratio: must be a number from 0 to 1, not None"],
        ),
        (
            "ExponentialLR",
            {"gamma": 0.5, "warmup_ratio": 0.1},
            ["scheduler_kwargs.warmup_ratio: ExponentialLR has no num_warmup_steps, remove it"],
        ),
        (
            "Constant",
            {"optimizer": 1},
            ["scheduler_kwargs.optimizer: the trainer gives it, remove it"],
        ),
        (
            "OneCycleLR",
            {"max_lr": 0.1, "epochs": 3},
            [
                "scheduler_kwargs.epochs: given without steps_per_epoch. Give both, or total_steps, or none for the "
                "length of the training"
            ],
        ),
        (
            None,
            {"gamma": 0.5},
            ["scheduler_kwargs: given without a scheduler, remove them or set scheduler"],
        ),
        (
            "ReduceLROnPlateau",
            {"patiense": 3, "factor": "half"},
            [
                "scheduler_kwargs.patiense: ReduceLROnPlateau has no such argument, did you mean 'patience'? "
                "It takes mode, factor, patience, threshold, threshold_mode, cooldown, min_lr, eps",
                "scheduler_kwargs.factor: must be a number, not 'half' (str)",
            ],
        ),
    ],
)
def test_problems_with_arguments(scheduler, kwargs, said):
    hps = HyperParameters(scheduler=scheduler, scheduler_kwargs=kwargs)
    assert hps.problems() == said
    if scheduler is not None:
        lines = "\n".join(f"  {problem}" for problem in said)
        count = "1 mistake" if len(said) == 1 else f"{len(said)} mistakes"
        assert refusal(scheduler, kwargs) == f"{count} in HyperParameters:\n{lines}"


def test_problems_of_optimizer_and_scheduler_together():
    hps = HyperParameters(optim_kwargs={"lrr": 1}, scheduler="ExponentialLR")
    assert [problem.partition(":")[0] for problem in hps.problems()] == ["optim_kwargs.lrr", "scheduler_kwargs.gamma"]


def test_what_the_scheduler_itself_refuses():
    adagrad = torch.optim.Adagrad([nn.Parameter(torch.zeros(1))])
    assert refusal("CyclicLR", {"base_lr": 0.1, "max_lr": 1.0}, optimizer=adagrad) == (
        "1 mistake in HyperParameters:\n  scheduler_kwargs: CyclicLR rejects them: optimizer must support momentum or "
        "beta1 with `cycle_momentum` option enabled"
    )
    assert refusal("PolynomialDecayWithWarmup", {"num_warmup_steps": 0, "lr_end": 0.5}) == (
        "1 mistake in HyperParameters:\n  scheduler_kwargs: PolynomialDecayWithWarmup rejects them: lr_end must be "
        "below the learning rate of the optimizer (0.5), not 0.5"
    )


def test_an_optimizer_without_a_learning_rate():
    pytest.importorskip("transformers")
    optimizer = HyperParameters(optimizer="Adafactor").build_optimizer(nn.Linear(2, 2).named_parameters())
    assert refusal("LinearWithWarmup", {"warmup_ratio": 0.1}, optimizer=optimizer) == (
        "1 mistake in HyperParameters:\n  scheduler_kwargs: LinearWithWarmup rejects them: the optimizer has no "
        "learning rate to schedule (lr is None), give lr in optim_kwargs"
    )


def test_a_factory_of_something_else_and_an_error_in_a_factory():
    assert refusal(lambda optimizer: 5) == (
        "1 mistake in HyperParameters:\n"
        "  scheduler: must be a factory of a torch.optim.lr_scheduler.LRScheduler, not 5 (int)"
    )

    def factory(optimizer):
        raise ValueError("mine")

    with pytest.raises(ValueError, match=r"^mine$"):
        build(factory)


def test_training_with_what_was_built_changes_the_rate_every_step():
    model = nn.Linear(2, 1)
    hps = HyperParameters(
        optimizer="AdamW",
        optim_kwargs={"lr": 0.4, "no_decay": ["bias"]},
        scheduler="CosineWithWarmup",
        scheduler_kwargs={"warmup_ratio": 0.5},
    )
    optimizer = hps.build_optimizer(model.named_parameters())
    scheduler = hps.build_scheduler(optimizer, steps_per_epoch=4, total_steps=4, epochs=1)
    seen = []
    for _ in range(4):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        scheduler.step()
        seen.append([group["lr"] for group in optimizer.param_groups])
    assert seen == [pytest.approx([rate, rate]) for rate in (0.2, 0.4, 0.2, 0.0)]

"""A schedule over resumes, without a training around it."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, RMSprop, lr_scheduler

from accmt.loop.learning_rate import ResumedAt, Schedule


def made(optimizer, make, length=(10, 5, 2), *, per_epoch=False):
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    names = {id(parameter): str(place) for place, parameter in enumerate(parameters)}
    scheduler = lambda: make(optimizer)  # noqa: E731
    return Schedule(optimizer, names, scheduler, lambda: list(length), per_epoch=per_epoch, is_own=False)


def sgd(**settings):
    return SGD(nn.Linear(2, 1).parameters(), **{"lr": 0.1, **settings})


def count(step=3, *, epoch=1, passed_end=False, is_finished=False):
    return ResumedAt(step, epoch, passed_end, is_finished)


def resumed(first, optimizer, second, optimizer_now, **place):
    """Load the second from the first, and say what has changed."""
    lines = second.prepare(first.record(), first.state_dict(), count(**place))
    with second.applied():
        optimizer_now.load_state_dict(optimizer.state_dict())
        second.load_state_dict(first.state_dict())
    return lines


def plateau(**settings):
    return lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, **{"factor": 0.5, "patience": 0, **settings})


def reduced(optimizer, scheduler, times=2):
    scheduler.step(1.0)
    for _ in range(times):
        scheduler.step(2.0)
    return optimizer.param_groups[0]["lr"]


def test_a_schedule_that_follows_a_metric_keeps_what_it_has_seen():
    optimizer, now = sgd(), sgd()
    first, second = made(optimizer, plateau()), made(now, plateau())
    assert reduced(optimizer, first.scheduler) == 0.025
    assert resumed(first, optimizer, second, now) == []
    assert (now.param_groups[0]["lr"], second.scheduler.best) == (0.025, 1.0)


def test_settings_of_a_schedule_that_follows_a_metric_take_effect():
    optimizer, now = sgd(), sgd(lr=0.4)
    first, second = made(optimizer, plateau()), made(now, plateau(factor=0.1))
    reduced(optimizer, first.scheduler)
    assert resumed(first, optimizer, second, now)[0] == "lr was 0.1 and is 0.4"
    assert now.param_groups[0]["lr"] == pytest.approx(0.1)  # twice the half of it
    assert (second.scheduler.best, second.scheduler.factor) == (1.0, 0.1)
    second.scheduler.step(3.0)
    assert now.param_groups[0]["lr"] == pytest.approx(0.01)


def test_a_schedule_that_follows_a_metric_instead_of_another():
    optimizer, now = sgd(), sgd()
    first = made(optimizer, lambda optimizer: lr_scheduler.StepLR(optimizer, 1))
    optimizer.step()
    first.scheduler.step()
    resumed(first, optimizer, made(now, plateau()), now)
    assert now.param_groups[0]["lr"] == 0.1


def test_an_epoch_whose_end_was_passed_over_counts():
    optimizer, now = sgd(), sgd()
    make = lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.5)  # noqa: E731
    first, second = made(optimizer, make, per_epoch=True), made(now, make, per_epoch=True)
    now.step()
    resumed(first, optimizer, second, now, passed_end=True)
    assert now.param_groups[0]["lr"] == 0.05


def test_cycled_momentum_follows_the_schedule():
    """A momentum that the script changes is the schedule's to set."""

    def cycle(optimizer):
        return lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=10)

    for make in (
        lambda momentum: sgd(momentum=momentum),
        lambda beta: Adam(nn.Linear(2, 1).parameters(), betas=(beta, 0.9)),
    ):
        whole, optimizer, now = make(0.9), make(0.9), make(0.5)
        expected, first, second = made(whole, cycle), made(optimizer, cycle), made(now, cycle)
        for schedule, stepped in ((expected, whole), (first, optimizer)):
            for _ in range(3):
                stepped.step()
                schedule.scheduler.step()
        now.step()
        resumed(first, optimizer, second, now)
        for name in ("lr", "momentum", "betas"):
            assert now.param_groups[0].get(name) == whole.param_groups[0].get(name)


@pytest.mark.parametrize(
    "make", [None, lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.2, 9, cycle_momentum=False)]
)
def test_momentum_that_is_not_cycled_any_more_is_that_of_the_settings(make):
    optimizer, now = sgd(momentum=0.9), sgd(momentum=0.9)
    first = made(optimizer, lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=9))
    second = made(now, make or (lambda optimizer: None))
    optimizer.step()
    first.scheduler.step()
    now.step()
    resumed(first, optimizer, second, now)
    assert (optimizer.param_groups[0]["momentum"] < 0.9, now.param_groups[0]["momentum"]) == (True, 0.9)


@pytest.mark.parametrize(
    ("kind", "settings", "kept"),
    [(Adam, {"amsgrad": True}, "max_exp_avg_sq"), (RMSprop, {"centered": True, "momentum": 0.5}, "momentum_buffer")],
)
def test_settings_that_need_more_state_than_there_is(kind, settings, kept):
    layer = nn.Linear(2, 1)
    optimizer, now = kind(layer.parameters()), kind(layer.parameters(), **settings)
    first, second = made(optimizer, lambda optimizer: None), made(now, lambda optimizer: None)
    layer(torch.ones(2)).backward()
    optimizer.step()
    resumed(first, optimizer, second, now)
    now.step()
    assert now.state[layer.weight][kept].any()


def test_a_rate_in_a_tensor():
    def steps(optimizer):
        return lr_scheduler.StepLR(optimizer, 2, gamma=0.5)

    optimizer, now = sgd(lr=torch.tensor(0.1)), sgd(lr=torch.tensor(0.4))
    first, second = made(optimizer, steps), made(now, steps)
    for _ in range(3):
        optimizer.step()
        first.scheduler.step()
    now.step()
    resumed(first, optimizer, second, now)
    assert now.param_groups[0]["lr"] == torch.tensor(0.2)
    second.scheduler.step()
    assert now.param_groups[0]["lr"] == torch.tensor(0.1)


def test_groups_are_known_by_their_parameters():
    """In another order they keep what belongs to them."""
    layer = nn.Linear(2, 1)
    names = {id(layer.weight): "weight", id(layer.bias): "bias"}

    def schedule(groups):
        optimizer = SGD([dict(group) for group in groups], lr=1.0)
        return Schedule(optimizer, names, lambda: None, lambda: [None], per_epoch=False, is_own=False), optimizer

    first, _ = schedule([{"params": [layer.weight], "lr": 0.1}, {"params": [layer.bias], "lr": 0.2}])
    second, _ = schedule([{"params": [layer.bias], "lr": 0.2}, {"params": [layer.weight], "lr": 0.3}])
    assert second.prepare(first.record(), {}, count()) == ["lr of parameter group 1 was 0.1 and is 0.3"]

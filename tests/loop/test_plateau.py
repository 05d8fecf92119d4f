"""Schedulers that need a metric follow the score that `scheduler_metric` names, after each evaluation."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import TensorDataset

from accmt import AcceleratorModule, Callback, ConfigError, ExtendedAcceleratorModule, FunctionMetric, RuleError

DATA = TensorDataset(torch.ones(8, 1))
VALUES = (5.0, 4.0, 4.0, 3.0, 3.0, 6.0)
KEPT = {"patience": 0, "factor": 0.5}


class Scored(AcceleratorModule):
    """Its n-th evaluation has the n-th value."""

    scheduler = None

    def __init__(self):
        self.model = nn.Linear(1, 1)

    def training_step(self, batch):
        return self.model(batch[0]).mean()

    def validation_step(self, key, batch):
        value = torch.tensor(VALUES[self.state.evaluations_done])
        return {"loss": value, "score": -value.expand(len(batch[0]))}

    def get_scheduler(self, optimizer, steps_per_epoch, epochs):
        return None if self.scheduler is None else self.scheduler(optimizer)


class Extended(Scored, ExtendedAcceleratorModule):
    """Steps by itself."""

    def training_step(self, batch):
        loss = super().training_step(batch)
        self.backward(loss)
        self.step()
        return loss


class Rates(Callback):
    """The learning rate after each step of the scheduler, and after each optimizer step."""

    def __init__(self):
        super().__init__()
        self.stepped, self.all = [], []

    def on_after_scheduler_step(self, scheduler):
        self.stepped.append(scheduler.optimizer.param_groups[0]["lr"])

    def on_before_optimizer_step(self, optimizer):
        self.all.append(optimizer.param_groups[0]["lr"])


def by_hand(values, **arguments):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, rates = ReduceLROnPlateau(optimizer, **arguments), []
    for value in values:
        scheduler.step(value)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def score():
    return FunctionMetric("score", lambda values: values.mean(), greater_is_better=True)


@pytest.mark.parametrize(
    ("how", "module", "metric", "mode"),
    [
        ("ReduceLROnPlateau", Scored, "valid_loss", "min"),
        (ReduceLROnPlateau, Scored, "best_score@0", "max"),
        ("torch.optim.lr_scheduler.ReduceLROnPlateau", Extended, "2 * valid_loss", "min"),
        ("module", Scored, "score", "max"),
    ],
)
@pytest.mark.parametrize("per_epoch", [False, True])
def test_it_is_followed_and_resumed_exactly(trainer, how, module, metric, mode, per_epoch):
    if how == "module":
        module = type("Own", (module,), {"scheduler": lambda self, o: ReduceLROnPlateau(o, mode=mode, **KEPT)})
        hps = {}
    else:
        hps = {"scheduler": how, "scheduler_kwargs": {"mode": mode, **KEPT}}
    hps["step_scheduler_per_epoch"] = per_epoch
    rates, expected = Rates(), by_hand([v if mode == "min" else -v for v in VALUES], mode=mode, **KEPT)
    arguments = {"lr": 1.0, "hps": hps, "metrics": score(), "scheduler_metric": metric, "callback": rates}
    for epochs in (2, 6):
        trainer(epochs=epochs, **arguments).fit(module(), DATA, DATA)
    assert rates.stepped == expected
    assert rates.all == [rate for rate in (1.0, *expected[:-1]) for _ in range(2)]


def test_without_validation_data_it_follows_the_training_loss(trainer):
    rates = Rates()
    arguments = {"hps": {"scheduler": "ReduceLROnPlateau"}, "callback": rates, "epochs": 2}
    trainer(scheduler_metric="train_loss", eval_when_start=True, **arguments).fit(Scored(), DATA)
    assert len(rates.stepped) == 2
    with pytest.raises(RuleError, match="'valid_loss' is measured on validation data"):
        trainer(scheduler_metric="valid_loss", **arguments).fit(Scored(), DATA)


class Positional(LRScheduler):
    """Cannot step without an argument."""

    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.step = lambda number: None

    def get_lr(self):
        return [1.0]


NEEDED = (
    'scheduler_metric: ReduceLROnPlateau follows a metric: give scheduler_metric="valid_loss", '
    'or a rule such as "best_accuracy@dev"'
)


@pytest.mark.parametrize(
    ("arguments", "scheduler", "text"),
    [
        ({}, ReduceLROnPlateau, NEEDED),
        ({"hps": {"step_scheduler_per_epoch": True}}, ReduceLROnPlateau, NEEDED),
        (
            {"scheduler_metric": "valid_loss"},
            None,
            "scheduler_metric: is given, and there is no scheduler: leave it out",
        ),
        (
            {"scheduler_metric": "valid_loss", "hps": {"scheduler": "Constant"}},
            None,
            "scheduler_metric: is given, and LambdaLR does not follow a metric: leave it out",
        ),
        (
            {"scheduler_metric": "score@0"},
            ReduceLROnPlateau,
            "scheduler_metric: higher is better for score@0, and the mode of ReduceLROnPlateau is 'min': "
            "give it mode='max'",
        ),
        (
            {"scheduler_metric": "valid_loss"},
            lambda optimizer: ReduceLROnPlateau(optimizer, "max"),
            "scheduler_metric: lower is better for valid_loss, and the mode of ReduceLROnPlateau is 'max': "
            "give it mode='min'",
        ),
        (
            {
                "scheduler_metric": "valid_loss",
                "evaluate_every_n_steps": 1,
                "hps": {"step_scheduler_per_epoch": True},
            },
            ReduceLROnPlateau,
            "step_scheduler_per_epoch: ReduceLROnPlateau steps after each evaluation, which comes every 1 step: "
            "leave it out",
        ),
        ({}, Positional, "scheduler: Positional.step needs number, and is called without: use another scheduler"),
        (
            {},
            lambda optimizer: [ReduceLROnPlateau(optimizer)],
            "get_scheduler: its return value must be one scheduler, or None, not [<torch.optim....> (list)",
        ),
    ],
)
def test_what_cannot_be_followed_is_an_error_before_the_first_step(trainer, arguments, scheduler, text):
    module = type("Own", (Scored,), {"scheduler": staticmethod(scheduler) if scheduler else None})()
    with pytest.raises(ConfigError) as caught:
        trainer(metrics=score(), **arguments).fit(module, DATA, DATA)
    assert text.split("[<")[0] in str(caught.value)


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        ("vald_loss", "did you mean 'valid_loss'?"),
        ("valid_loss/score", "a scheduler follows one score"),
        ("avg(valid_loss, 2)", "'avg' remembers former evaluations"),
        ("valid_loss by 0.1", "a scheduler follows the score alone"),
        ("score@dev", "unknown dataset 'dev'"),
    ],
)
def test_the_score_is_checked_as_a_rule_is(trainer, metric, text):
    hps = {"scheduler": "ReduceLROnPlateau"}
    with pytest.raises(RuleError) as caught:
        trainer(metrics=score(), scheduler_metric=metric, hps=hps).fit(Scored(), DATA, DATA)
    assert text in str(caught.value)


def test_by_name_it_is_missing_at_once(trainer):
    for choice in ("ReduceLROnPlateau", ReduceLROnPlateau):
        with pytest.raises(ConfigError) as caught:
            trainer(hps={"scheduler": choice})
        assert str(caught.value) == f"1 mistake in Trainer(...):\n  {NEEDED}"

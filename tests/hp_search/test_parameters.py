"""What is declared is what the trials train with."""

import inspect
from functools import partial
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from accmt import ConfigError, Optimizer, Scheduler
from accmt.hp_search import HyperParameterSearch

RATE = 0.01


def random_sampler():
    return optuna.samplers.RandomSampler(seed=0)


def test_the_signature_is_the_documented_one():
    parameters = inspect.signature(HyperParameterSearch.set_parameters).parameters
    assert {name: p.default for name, p in parameters.items() if name != "self"} == {
        "train_batch_size": 1,
        "epochs": 1,
        "max_steps": None,
        "learning_rate": [0.001, 1e-07],
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-08,
        "weight_decay": 0.01,
        "scheduler": None,
        "warmup_ratio": 0.1,
        "step_scheduler_per_epoch": False,
        "optimizer": "AdamW",
        "eval_batch_size": None,
    }
    assert {p.kind for name, p in parameters.items() if name != "self"} == {inspect.Parameter.KEYWORD_ONLY}
    call = list(inspect.signature(HyperParameterSearch.optimize).parameters.values())[1:4]
    assert [(p.name, p.default) for p in call] == [
        ("best_metric_fn", None),
        ("direction", "minimize"),
        ("n_trials", 10),
    ]
    made = list(inspect.signature(HyperParameterSearch).parameters.values())
    assert [p.name for p in made] == ["get_module_fn", "train_dataset", "val_dataset", "metrics", "trainer_kwargs"]


@pytest.mark.proves(
    "hp_search.HyperParameterSearch.set_parameters",
    "hp_search.HyperParameterSearch.set_parameters(train_batch_size)",
    "hp_search.HyperParameterSearch.set_parameters(epochs)",
    "hp_search.HyperParameterSearch.set_parameters(learning_rate)",
    "hp_search.HyperParameterSearch.set_parameters(beta1)",
    "hp_search.HyperParameterSearch.set_parameters(beta2)",
    "hp_search.HyperParameterSearch.set_parameters(eps)",
    "hp_search.HyperParameterSearch.set_parameters(weight_decay)",
    "hp_search.HyperParameterSearch.set_parameters(optimizer)",
    "hp_search.HyperParameterSearch.set_parameters(eval_batch_size)",
)
def test_fixed_values(search, witness):
    searching = search()
    searching.set_parameters(
        train_batch_size=4,
        eval_batch_size=2,
        epochs=3,
        learning_rate=RATE,
        beta1=0.8,
        beta2=0.9,
        eps=1e-6,
        weight_decay=0.1,
        optimizer="Adam",
    )
    study = searching.optimize(n_trials=1)
    seen = witness.now
    assert (seen["batch"], seen["eval_batch"], seen["epochs"], seen["steps"]) == (4, 2, 3, 12)
    assert seen["optimizer"] == ("Adam", (0.8, 0.9), 1e-6, 0.1)
    assert seen["rates"] == [RATE] * 12
    assert not seen["schedulers"]
    [trial] = study.trials
    assert trial.params == {}
    assert trial.user_attrs["hyperparameters"] == {
        "epochs": 3,
        "max_steps": None,
        "batch_size": [4, 2],
        "optimizer": {"type": "Adam", "lr": RATE, "betas": [0.8, 0.9], "eps": 1e-6, "weight_decay": 0.1},
        "scheduler": None,
        "step_scheduler_per_epoch": False,
    }


@pytest.mark.proves("hp_search.HyperParameterSearch.set_parameters")
def test_the_defaults_search_the_learning_rate(search, witness):
    study = search().optimize(n_trials=3)
    assert [trial.distributions for trial in study.trials] == [
        {"learning_rate": FloatDistribution(1e-7, 1e-3, log=True)}
    ] * 3
    assert [training["rates"][0] for training in witness.trainings] == [
        trial.params["learning_rate"] for trial in study.trials
    ]
    assert witness.now["optimizer"] == ("AdamW", (0.9, 0.999), 1e-8, 0.01)
    assert (witness.now["batch"], witness.now["eval_batch"], witness.now["steps"]) == (1, 1, 16)


@pytest.mark.proves(
    "hp_search.HyperParameterSearch.set_parameters(learning_rate)",
    "hp_search.HyperParameterSearch.set_parameters(beta1)",
    "hp_search.HyperParameterSearch.set_parameters(beta2)",
    "hp_search.HyperParameterSearch.set_parameters(eps)",
    "hp_search.HyperParameterSearch.set_parameters(weight_decay)",
)
@pytest.mark.parametrize("ends", [[1e-4, 1e-1], [1e-1, 1e-4]])
def test_ranges_of_numbers_in_either_order(search, witness, ends):
    searching = search()
    searching.set_parameters(
        train_batch_size=8,
        learning_rate=ends,
        beta1=[0.9, 0.5],
        beta2=[0.9, 0.99],
        eps=[1e-6, 1e-8],
        weight_decay=[0, 0.5],
    )
    study = searching.optimize(n_trials=4, sampler=random_sampler())
    assert study.trials[0].distributions == {
        "learning_rate": FloatDistribution(1e-4, 1e-1, log=True),
        "beta1": FloatDistribution(0.5, 0.9),
        "beta2": FloatDistribution(0.9, 0.99),
        "eps": FloatDistribution(1e-8, 1e-6),
        "weight_decay": FloatDistribution(0.0, 0.5),
    }
    rates = set()
    for trial, seen in zip(study.trials, witness.trainings, strict=True):
        values = trial.params
        rates.add(values["learning_rate"])
        assert seen["rates"] == [values["learning_rate"]] * 2
        expected = (values["beta1"], values["beta2"]), values["eps"], values["weight_decay"]
        assert seen["optimizer"] == ("AdamW", *expected)
    assert len(rates) == 4


@pytest.mark.proves("hp_search.HyperParameterSearch.set_parameters(epochs)")
def test_ranges_of_whole_numbers(search, witness):
    searching = search()
    searching.set_parameters(train_batch_size=8, epochs=[3, 1])
    study = searching.optimize(n_trials=5, sampler=random_sampler())
    assert study.trials[0].distributions["epochs"] == IntDistribution(1, 3)
    assert [seen["epochs"] for seen in witness.trainings] == [trial.params["epochs"] for trial in study.trials]
    assert len({trial.params["epochs"] for trial in study.trials}) > 1


@pytest.mark.proves("hp_search.HyperParameterSearch.set_parameters(max_steps)")
def test_max_steps_replace_epochs(search, witness):
    searching = search()
    searching.set_parameters(train_batch_size=8, epochs=9, max_steps=[1, 5])
    study = searching.optimize(n_trials=4, sampler=random_sampler())
    assert study.trials[0].distributions.keys() == {"max_steps", "learning_rate"}
    assert [seen["steps"] for seen in witness.trainings] == [trial.params["max_steps"] for trial in study.trials]


@pytest.mark.proves("hp_search.HyperParameterSearch.set_parameters(train_batch_size)")
def test_choices(search, witness, in_order):
    searching = search()
    searching.set_parameters(train_batch_size=[8, 4], learning_rate=(1e-2, 1e-3), epochs=(2, 1))
    sampler = in_order(train_batch_size=[4, 8], learning_rate=[1e-3, 1e-2], epochs=[1, 2])
    study = searching.optimize(n_trials=2, sampler=sampler)
    assert study.trials[0].distributions == {
        "train_batch_size": CategoricalDistribution((8, 4)),
        "learning_rate": CategoricalDistribution((1e-2, 1e-3)),
        "epochs": CategoricalDistribution((2, 1)),
    }
    assert [seen["batch"] for seen in witness.trainings] == [4, 8]
    assert [seen["eval_batch"] for seen in witness.trainings] == [4, 8]
    assert [seen["rates"][0] for seen in witness.trainings] == [1e-3, 1e-2]
    assert [seen["epochs"] for seen in witness.trainings] == [1, 2]


def test_numbers_of_numpy(search):
    searching = search()
    searching.set_parameters(train_batch_size=(np.int64(4), np.int64(8)), learning_rate=np.float32(0.5))
    [trial] = searching.optimize(n_trials=1, sampler=random_sampler()).trials
    assert [type(value) for value in trial.distributions["train_batch_size"].choices] == [int, int]
    assert trial.user_attrs["hyperparameters"]["optimizer"]["lr"] == 0.5


@pytest.mark.proves(
    "hp_search.HyperParameterSearch.set_parameters(scheduler)",
    "hp_search.HyperParameterSearch.set_parameters(warmup_ratio)",
)
def test_schedulers_are_options_by_label(search, witness, in_order):
    """The share to warm up is searched where the scheduler of the trial has a warm-up, and given to no other."""
    searching = search()
    steps = partial(Scheduler.StepLR, step_size=1, gamma=0.1)
    searching.set_parameters(
        train_batch_size=4,
        learning_rate=RATE,
        scheduler={"line": Scheduler.LinearWithWarmup, "steps": steps, "stays": None, "flat": "Constant"},
        warmup_ratio=[0.5, 0.25],
    )
    sampler = in_order(scheduler=["line", "steps", "stays", "flat"], warmup_ratio=[0.5])
    study = searching.optimize(n_trials=4, sampler=sampler)
    assert study.trials[0].distributions == {
        "scheduler": CategoricalDistribution(("line", "steps", "stays", "flat")),
        "warmup_ratio": FloatDistribution(0.25, 0.5),
    }
    assert [trial.params for trial in study.trials] == [
        {"scheduler": "line", "warmup_ratio": 0.5},
        {"scheduler": "steps"},
        {"scheduler": "stays"},
        {"scheduler": "flat"},
    ]
    line, stepped, stays, flat = (seen["rates"] for seen in witness.trainings)
    assert line == pytest.approx([0.0, RATE / 2, RATE, RATE / 2])
    assert stepped == pytest.approx([RATE, RATE / 10, RATE / 100, RATE / 1000])
    assert stays == flat == [RATE] * 4
    assert [seen["schedulers"] for seen in witness.trainings] == [{"LambdaLR"}, {"StepLR"}, set(), {"LambdaLR"}]


@pytest.mark.proves(
    "hp_search.HyperParameterSearch.set_parameters(scheduler)",
    "hp_search.HyperParameterSearch.set_parameters(warmup_ratio)",
)
@pytest.mark.parametrize(
    ("scheduler", "rates"),
    [
        (Scheduler.ConstantWithWarmup, [0.0, RATE / 2, RATE, RATE]),
        ("LinearWithWarmup", [0.0, RATE / 2, RATE, RATE / 2]),
        (partial(Scheduler.ConstantWithWarmup, num_warmup_steps=1), [0.0, RATE, RATE, RATE]),
        (Scheduler.CosineAnnealingLR, [RATE * (1 + np.cos(np.pi * step / 4)) / 2 for step in range(4)]),
    ],
)
def test_one_scheduler(search, witness, scheduler, rates):
    searching = search()
    searching.set_parameters(train_batch_size=4, learning_rate=RATE, scheduler=scheduler, warmup_ratio=0.5)
    [trial] = searching.optimize(n_trials=1).trials
    assert trial.params == {}
    assert witness.now["rates"] == pytest.approx(rates)


@pytest.mark.proves("hp_search.HyperParameterSearch.set_parameters(step_scheduler_per_epoch)")
def test_a_scheduler_that_counts_epochs(search, witness):
    searching = search()
    searching.set_parameters(
        train_batch_size=8,
        epochs=2,
        learning_rate=RATE,
        scheduler=partial(Scheduler.ExponentialLR, gamma=0.1),
        step_scheduler_per_epoch=True,
    )
    searching.optimize(n_trials=1)
    assert witness.now["rates"] == pytest.approx([RATE, RATE, RATE / 10, RATE / 10])


@pytest.mark.proves("hp_search.HyperParameterSearch.set_parameters(optimizer)")
@pytest.mark.parametrize("optimizer", [Optimizer.Adam, torch.optim.Adam, "Adam"])
def test_the_optimizer_by_class_or_name(search, witness, optimizer):
    searching = search()
    searching.set_parameters(train_batch_size=8, optimizer=optimizer)
    searching.optimize(n_trials=1)
    assert witness.now["optimizer"][0] == "Adam"


SCHEDULERS = (
    "Constant, ConstantWithWarmup, CosineAnnealingLR, CosineAnnealingWarmRestarts, CosineWithHardRestartsWithWarmup, "
    "CosineWithWarmup, CyclicLR, ExponentialLR, InverseSQRT, LinearLR, LinearWithWarmup, OneCycleLR, "
    "PolynomialDecayWithWarmup, ReduceLROnPlateau, StepLR"
)


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        (
            {"epochs": 0},
            "epochs: must be a whole number from 1, a range [low, high] or a tuple of choices, not 0 (int)",
        ),
        (
            {"epochs": True},
            "epochs: must be a whole number from 1, a range [low, high] or a tuple of choices, not True (bool)",
        ),
        (
            {"epochs": None},
            "epochs: must be a whole number from 1, a range [low, high] or a tuple of choices, not None",
        ),
        (
            {"train_batch_size": "8"},
            "train_batch_size: must be a whole number from 1 or a list of choices, not '8' (str)",
        ),
        ({"epochs": [1, 2.5]}, "epochs[1]: must be a whole number from 1, not 2.5 (float)"),
        ({"max_steps": (10, None)}, "max_steps[1]: must be a whole number from 1, not None"),
        ({"learning_rate": (1e-3, "1e-4")}, "learning_rate[1]: must be a positive number, not '1e-4' (str)"),
        ({"learning_rate": [0, 1e-3]}, "learning_rate[0]: must be a positive number, not 0 (int)"),
        ({"learning_rate": [1e-3, float("inf")]}, "learning_rate[1]: must be a positive number, not inf (float)"),
        (
            {"learning_rate": float("nan")},
            "learning_rate: must be a positive number, a range [low, high] or a tuple of choices, not nan (float)",
        ),
        (
            {"learning_rate": [1e-3]},
            "learning_rate: a list is a range and has two ends, [low, high], not 1 values; a tuple is choices",
        ),
        (
            {"beta1": [0.8, 0.9, 0.95]},
            "beta1: a list is a range and has two ends, [low, high], not 3 values; a tuple is choices",
        ),
        ({"beta2": (0.9, 1.0)}, "beta2[1]: must be a number from 0 to below 1, not 1.0 (float)"),
        ({"eps": [-1e-8, 1e-8]}, "eps[0]: must be a number from 0, not -1e-08 (float)"),
        ({"warmup_ratio": [0.1, 1.5]}, "warmup_ratio[1]: must be a number from 0 to 1, not 1.5 (float)"),
        ({"weight_decay": ()}, "weight_decay: is empty: give the values to choose from"),
        ({"train_batch_size": []}, "train_batch_size: is empty: give the values to choose from"),
        ({"train_batch_size": [8, 16, 8]}, "train_batch_size: has the choice 8 more than once"),
        (
            {"epochs": [1, 3], "max_steps": 100},
            "epochs: has no effect, because max_steps replaces it: leave one of them out",
        ),
        ({"optimizer": "adamw"}, "optimizer: must be 'AdamW' or 'Adam', not 'adamw' (str), did you mean 'AdamW'?"),
        ({"optimizer": "SGD"}, "optimizer: must be 'AdamW' or 'Adam', not 'SGD' (str)"),
        (
            {"optimizer": ("AdamW", "Adam")},
            "optimizer: must be 'AdamW' or 'Adam', not ('AdamW', 'Adam') (tuple)",
        ),
        (
            {"eval_batch_size": (4, 8)},
            "eval_batch_size: must be a whole number from 1, or None for the training batch size, not (4, 8) (tuple)",
        ),
        ({"step_scheduler_per_epoch": 1}, "step_scheduler_per_epoch: must be True or False, not 1 (int)"),
        ({"scheduler": {}}, "scheduler: is empty: give the schedulers to choose from, {label: scheduler}"),
        ({"scheduler": {1: "Constant"}}, "scheduler: has the label 1: a label is a string"),
        (
            {"scheduler": {"a": "Constnt"}},
            f"scheduler['a']: unknown scheduler 'Constnt', did you mean 'Constant'? Allowed are {SCHEDULERS}, "
            "a subclass of torch.optim.lr_scheduler.LRScheduler, or a callable (optimizer, **arguments) that returns "
            "one",
        ),
        (
            {"scheduler": ["Constant"]},
            "scheduler: must be the name of a scheduler, a subclass of torch.optim.lr_scheduler.LRScheduler, or a "
            "callable (optimizer, **arguments) that returns one, not ['Constant'] (list); "
            "several go into a dictionary, {label: scheduler}",
        ),
        (
            {"scheduler": {"steps": Scheduler.StepLR}},
            "scheduler['steps']: StepLR cannot be built without step_size: give it with them, as in "
            "functools.partial(Scheduler.StepLR, step_size=...)",
        ),
    ],
)
def test_mistakes(search, parameters, text):
    searching = search()
    with pytest.raises(ConfigError) as caught:
        searching.set_parameters(**parameters)
    assert str(caught.value) == f"1 mistake in set_parameters(...):\n  {text}"


def test_what_the_page_declares_can_be_declared(search):
    page = (Path(__file__).parent.parent.parent / "docs" / "how-to" / "hyperparameter-search.md").read_text()
    table = page.split("| declared | tried |")[1].split("\n\n")[0]
    rows = [row.split("|")[1].strip().strip("`") for row in table.splitlines()[2:]]
    assert len(rows) == 6
    searching = search()
    for row in rows:
        searching.set_parameters(**eval(f"dict({row})", {"partial": partial, "Scheduler": Scheduler}))


def test_all_mistakes_are_told_at_once(search):
    searching = search()
    with pytest.raises(ConfigError) as caught:
        searching.set_parameters(epochs=[1], learning_rate=(0.0, -1.0), optimizer="Adamm", warmup_ratio=2)
    assert [problem.path for problem in caught.value.problems] == [
        "epochs",
        "learning_rate[0]",
        "learning_rate[1]",
        "warmup_ratio",
        "optimizer",
    ]

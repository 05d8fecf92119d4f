"""What a trial is worth, and which way is better."""

import math
import re

import optuna
import pytest
import torch
from optuna.trial import TrialState

from accmt import ConfigError, FunctionMetric, RuleError


def closeness(p, t):
    return 1 / (1 + (p - t).abs().mean())


@pytest.fixture
def metrics(error_metric):
    """`error`, of which less is better."""
    return [error_metric()]


@pytest.fixture
def close():
    """A metric that is computed of the same arguments, of which more is better."""
    return [FunctionMetric("error", lambda p, t: {"error": closeness(p, t)}, greater_is_better=True)]


def values(witness, metric, dataset="0"):
    """For each training, the values of its evaluations."""
    return [[value[dataset][metric] for value in training["values"]] for training in witness.trainings]


def tuned(searching, **parameters):
    searching.set_parameters(train_batch_size=8, epochs=3, **{"learning_rate": (0.3, 0.01), **parameters})
    return searching


@pytest.mark.proves("hp_search.HyperParameterSearch.optimize")
def test_the_lowest_validation_loss_by_default(search, witness, in_order):
    study = tuned(search()).optimize(n_trials=2, sampler=in_order(learning_rate=[0.3, 0.01]))
    assert study.direction == optuna.study.StudyDirection.MINIMIZE
    assert [trial.value for trial in study.trials] == [min(losses) for losses in values(witness, "valid_loss")]
    assert study.best_value == min(map(min, values(witness, "valid_loss")))


def test_the_best_is_not_the_last(search, witness):
    """With a learning rate that is much too high the loss is lowest before the end."""
    study = tuned(search(), learning_rate=3.0).optimize(n_trials=1)
    [losses] = values(witness, "valid_loss")
    assert min(losses) < losses[-1]
    assert study.best_value == min(losses)
    assert study.trials[0].intermediate_values == dict(enumerate(losses, start=1))


@pytest.mark.proves("hp_search.HyperParameterSearch(metrics)")
def test_a_rule_takes_its_direction_from_the_metric(search, witness, close):
    study = tuned(search(metrics=close)).optimize(n_trials=2, objective="best_error")
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert [trial.value for trial in study.trials] == [max(scores) for scores in values(witness, "error")]


@pytest.mark.proves("hp_search.HyperParameterSearch(val_dataset)")
def test_a_rule_on_one_dataset(search, data, witness, metrics):
    searching = tuned(search(validation={"dev": data(8, 1), "test": data(6, 2)}, metrics=metrics))
    study = searching.optimize(n_trials=1, objective="error@test", direction="minimize")
    assert study.best_value == min(values(witness, "error", "test")[0])
    combined = searching.optimize(n_trials=1, objective="worst(error)")
    both = zip(values(witness, "error", "dev")[1], values(witness, "error", "test")[1], strict=True)
    assert combined.best_value == min(map(max, both))


@pytest.mark.proves("hp_search.HyperParameterSearch(train_dataset)")
def test_a_rule_without_validation_data(search, regression, data, witness):
    searching = tuned(type(search())(regression, data(16), None, callback=witness, dataloader_num_workers=0))
    study = searching.optimize(n_trials=1, objective="train_loss")
    [trial] = study.trials
    assert len(trial.intermediate_values) == 3
    assert trial.value == min(trial.intermediate_values.values())


def test_the_condition_of_a_rule_counts(search, witness, metrics):
    """Only evaluations at which the rule saves have a value for the search."""
    study = tuned(search(metrics=metrics)).optimize(n_trials=2, objective="best_valid_loss if evaluation > 2")
    assert [trial.value for trial in study.trials] == [losses[2] for losses in values(witness, "valid_loss")]
    never = tuned(search(metrics=metrics)).optimize(n_trials=1, objective="best_valid_loss if error < 0")
    [trial] = never.trials
    assert trial.state == TrialState.FAIL
    assert re.fullmatch(r"NoValue: valid_loss has no value: .*error < 0.*", trial.user_attrs["error"])


@pytest.mark.proves(
    "hp_search.HyperParameterSearch.optimize(best_metric_fn)",
    "hp_search.HyperParameterSearch.optimize(direction)",
)
def test_a_function_gets_the_metrics_of_the_last_evaluation(search, data, witness, metrics):
    given = []

    def last_sum(metrics):
        given.append(metrics)
        return sum(values["valid_loss"] + values["error"] for values in metrics.values())

    searching = tuned(search(validation={"dev": data(8, 1), "test": data(6, 2)}, metrics=metrics))
    study = searching.optimize(last_sum, "maximize", 2)
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert given == [values for training in witness.trainings for values in training["values"]]
    assert given[0].keys() == {"dev", "test"}
    assert given[0]["dev"].keys() == {"valid_loss", "error"}
    expected = [
        sum(v["valid_loss"] + v["error"] for v in training["values"][-1].values()) for training in witness.trainings
    ]
    assert [trial.value for trial in study.trials] == expected


@pytest.mark.proves("hp_search.HyperParameterSearch.optimize(direction)")
def test_a_function_with_the_default_direction(search, witness):
    study = tuned(search()).optimize(lambda metrics: torch.tensor(metrics["0"]["valid_loss"]), n_trials=2)
    assert study.direction == optuna.study.StudyDirection.MINIMIZE
    assert [trial.value for trial in study.trials] == pytest.approx([v[-1] for v in values(witness, "valid_loss")])


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (
            lambda metrics: "0.5",
            "TypeError: best_metric_fn must return a number, not '0.5' (str); raised in Reporter.on_evaluation_end, "
            "epoch 1, step 2",
        ),
        (
            lambda metrics: None,
            "TypeError: best_metric_fn must return a number, not None (NoneType); raised in "
            "Reporter.on_evaluation_end, epoch 1, step 2",
        ),
        (lambda metrics: metrics["dev"], "KeyError: 'dev'; raised in Reporter.on_evaluation_end, epoch 1, step 2"),
        (lambda metrics: math.nan, "NoValue: best_metric_fn returned nan after the last evaluation"),
    ],
)
def test_a_function_that_gives_no_number(search, function, error):
    [trial] = tuned(search()).optimize(function, n_trials=1).trials
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["error"] == error


def test_a_training_without_evaluations_has_no_value(search):
    searching = tuned(search(evaluate_every="100 steps", eval_when_finish=False))
    studies = [searching.optimize(n_trials=1), searching.optimize(lambda metrics: 1.0, n_trials=1)]
    assert [study.trials[0].user_attrs["error"] for study in studies] == [
        "NoValue: valid_loss has no value, because there was no evaluation",
        "NoValue: best_metric_fn was not called, because there was no evaluation",
    ]


def test_the_evaluation_before_the_first_step_counts_for_nothing(search, witness):
    study = tuned(search(eval_when_start=True), learning_rate=3.0).optimize(n_trials=1)
    [losses] = values(witness, "valid_loss")
    assert len(losses) == 4
    assert study.best_value == min(losses[1:])
    assert study.trials[0].intermediate_values == dict(enumerate(losses[1:], start=1))


NEEDS_A_STUDY = "load_if_exists: needs storage and study_name: they say which study to continue"
PRUNER = "<class 'optuna.pruners._median.MedianPruner'> (ABCMeta): give an instance, not the class"


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        (
            {"objective": "best_error", "best_metric_fn": len},
            ["objective: is given together with best_metric_fn: give one of them"],
        ),
        (
            {"objective": len},
            [
                "objective: must be a rule, or None, not <built-in function len> (builtin_function_or_method): "
                "a function belongs in best_metric_fn="
            ],
        ),
        (
            {"best_metric_fn": "best_error"},
            ["best_metric_fn: must be a function, or None, not 'best_error' (str): a rule belongs in objective="],
        ),
        ({"direction": "max"}, ["direction: must be 'minimize' or 'maximize', not 'max' (str)"]),
        ({"n_trials": 0}, ["n_trials: must be a whole number from 1, not 0 (int)"]),
        (
            {"n_trials": None, "total_trials": True},
            [
                "n_trials: must be a whole number from 1, not None",
                "total_trials: must be a whole number from 1, not True (bool)",
            ],
        ),
        (
            {"storage": "search.db"},
            ["storage: 'search.db' is not the address of a database: a file is 'sqlite:///search.db'"],
        ),
        (
            {"storage": 3},
            [
                "storage: must be the address of a database, such as 'sqlite:///search.db', or a storage of Optuna, "
                "not 3 (int)"
            ],
        ),
        ({"study_name": ""}, ["study_name: must be a string, or None, not '' (str)"]),
        ({"load_if_exists": 1}, ["load_if_exists: must be True or False, not 1 (int)"]),
        ({"load_if_exists": True, "study_name": "a"}, [NEEDS_A_STUDY]),
        ({"load_if_exists": True, "storage": "sqlite:///x.db"}, [NEEDS_A_STUDY]),
        (
            {"pruner": optuna.pruners.MedianPruner},
            [f"pruner: must be a pruner of Optuna, or None, not {PRUNER}"],
        ),
        ({"sampler": "tpe"}, ["sampler: must be a sampler of Optuna, or None, not 'tpe' (str)"]),
    ],
)
def test_mistakes_in_the_call(search, witness, arguments, problems):
    with pytest.raises(ConfigError) as caught:
        search().optimize(**arguments)
    count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
    assert str(caught.value) == "\n  ".join([f"{count} in optimize(...):", *problems])
    assert witness.trainings == []


@pytest.mark.parametrize(
    ("direction", "objective", "text"),
    [
        (
            "minimize",
            "best_error",
            "'minimize' contradicts best_error, where greater is better: leave the direction out",
        ),
        ("maximize", None, "'maximize' contradicts best_valid_loss, where lower is better: leave the direction out"),
    ],
)
def test_a_direction_that_contradicts(search, witness, close, direction, objective, text):
    with pytest.raises(ConfigError) as caught:
        search(metrics=close).optimize(direction=direction, objective=objective)
    assert str(caught.value) == f"1 mistake in optimize(...):\n  direction: {text}"
    assert witness.trainings == []


@pytest.mark.parametrize(
    ("objective", "text"),
    [
        (
            "best_error/valid_loss",
            "a search has one objective\n"
            "    best_error/valid_loss\n"
            "               ^^^^^^^^^^\n"
            "  use one of them, or combine them: a sum, a mean, worst(...)",
        ),
        (
            "best_error then valid_loss",
            "a search has one objective\n"
            "    best_error then valid_loss\n"
            "                    ^^^^^^^^^^\n"
            "  use one of them, or combine them: a sum, a mean, worst(...)",
        ),
        (
            "best_eror@0",
            "unknown metric 'eror'\n"
            "    best_eror@0\n"
            "         ^^^^\n"
            "  this training reports: error (0), train_loss, valid_loss (0)\n"
            "  did you mean 'error'?",
        ),
        (
            "best_error@dev",
            "unknown dataset 'dev'\n    best_error@dev\n               ^^^\n  the datasets are: 0",
        ),
    ],
)
def test_an_objective_that_cannot_be(search, witness, metrics, objective, text):
    with pytest.raises(RuleError) as caught:
        search(metrics=metrics).optimize(objective=objective)
    assert str(caught.value) == text
    assert witness.trainings == []


@pytest.mark.proves("hp_search.HyperParameterSearch(val_dataset)")
def test_validation_data_are_needed(search, regression, data):
    searching = type(search())(regression, data(16), None)
    with pytest.raises(RuleError, match="valid_loss"):
        searching.optimize()
    with pytest.raises(ConfigError) as caught:
        searching.optimize(len)
    assert str(caught.value) == (
        "1 mistake in HyperParameterSearch(...):\n"
        "  val_dataset: is missing: best_metric_fn needs the values of evaluations"
    )

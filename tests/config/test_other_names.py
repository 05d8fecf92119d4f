"""Names of other libraries are answered with those of accmt, and with where they belong."""

import pytest
from torch import nn

from accmt import ConfigError, HyperParameters, Monitor, Trainer

EPOCHS = ", did you mean 'epochs', a hyperparameter?"
RATE = ", did you mean 'lr', an argument of the optimizer?"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("max_epochs", f"unknown argument{EPOCHS}"),
        ("num_epochs", f"unknown argument{EPOCHS}"),
        ("num_train_epochs", f"unknown argument{EPOCHS}"),
        ("learning_rate", f"unknown argument{RATE}"),
        ("lr", f"unknown argument{RATE}"),
        ("fused", "unknown argument, did you mean 'fused', an argument of the optimizer?"),
        ("per_device_train_batch_size", "unknown argument, did you mean 'batch_size', a hyperparameter?"),
        ("max_steps", "unknown argument, did you mean 'max_steps', a hyperparameter?"),
        ("callbacks", "is no longer an argument: give callback, one or a list"),
        ("gradient_clip_val", "unknown argument, did you mean 'clip_grad'?"),
        ("accumulate_grad_batches", "unknown argument, did you mean 'grad_accumulation_steps'?"),
        ("precision", "unknown argument, did you mean 'mixed_precision'?"),
        ("logger", "unknown argument, did you mean 'log_with'?"),
        ("output_dir", "unknown argument, did you mean 'model_path'?"),
        ("train_dataset", "unknown argument, did you mean 'train_dataset', an argument of fit?"),
        (
            "device",
            "unknown argument, did you mean 'ACCELERATE_USE_CPU', a variable of the environment, without which a GPU "
            "is used if there is one?",
        ),
    ],
)
@pytest.mark.parametrize("log_with", [None, "mlflow", "aim"])  # aim takes any argument
def test_the_trainer(tmp_path, name, text, log_with, monkeypatch):
    monkeypatch.setattr("accmt.tracking.tracker_arguments._is_installed", lambda name: True)
    with pytest.raises(ConfigError) as caught:
        Trainer(HyperParameters(), tmp_path, log_with=log_with, **{name: 1})
    assert str(caught.value) == f"1 mistake in Trainer(...):\n  {name}: {text}"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_epochs", EPOCHS),
        ("lr", RATE),
        ("callbacks", ", did you mean 'callback', an argument of Trainer?"),
        ("validation_data", ", did you mean 'val_dataset'?"),
        ("criterion", ", did you mean 'loss_fn'?"),
    ],
)
def test_fit(trainer, data, name, meant):
    with pytest.raises(ConfigError) as caught:
        trainer().fit(nn.Linear(4, 1), data(8), loss_fn=nn.MSELoss(), **{name: 1})
    assert str(caught.value) == f"1 mistake in fit(...):\n  {name}: unknown argument{meant}"


def test_hyperparameters():
    with pytest.raises(ConfigError) as caught:
        HyperParameters(max_epochs=3, callbacks=[])
    assert [problem.text.partition(" Allowed")[0] for problem in caught.value.problems] == [
        "unknown key, did you mean 'epochs'?",
        "unknown key, did you mean 'callback', an argument of Trainer?",
    ]


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({}, "Trainer is missing 'hps_config' and 'model_path'"),
        ({"hps_config": {}, "Output_Dir": "runs"}, "Trainer is missing 'model_path' (given as 'Output_Dir')"),
        (
            {"hps_file": "hps.yaml", "model_path": "runs"},
            "Trainer is missing 'hps_config'; hps_file is no longer an argument: give hps_config",
        ),
    ],
)
def test_arguments_that_are_missing(given, error):
    with pytest.raises(TypeError) as caught:
        Trainer(**given)
    assert str(caught.value) == error


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Monitor(lr=True), "did you mean 'learning_rate'?"),
        (lambda: Monitor(epochs=True), "did you mean 'epoch'?"),
        (lambda: Trainer.find_lr(None, None, None, num_steps=9), "did you mean 'steps'?"),
    ],
)
def test_a_name_that_the_call_itself_has_comes_first(call, said):
    with pytest.raises(ConfigError) as caught:
        call()
    assert said in str(caught.value)

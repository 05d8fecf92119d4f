"""Every mistake that can be known is found before the first step, in one message, and nothing is written."""

import pytest
import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from accmt import (
    AcceleratorModule,
    Callback,
    ConfigError,
    FunctionMetric,
    HyperParameters,
    Metric,
    Monitor,
    RuleError,
    Trainer,
)

HPS = HyperParameters(1, batch_size=4)


def constructor(match, error=ConfigError, **arguments):
    with pytest.raises(error) as caught:
        Trainer(arguments.pop("hps", HPS), "nowhere", **arguments)
    assert str(caught.value) == match


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"pacience": 3}, "pacience: unknown argument, did you mean 'patience'?"),
        ({"run_name": "x"}, "run_name: is for a tracker, and there is none: give log_with"),
        ({"patience": 0}, "patience: must be a whole number from 1, not 0 (int)"),
        (
            {"patience": {"best_accuracy": "3"}},
            "patience['best_accuracy']: must be a whole number from 1, not '3' (str)",
        ),
        ({"resume": 0}, "resume: must be True, False, None, an index from 1, or -1, not 0 (int)"),
        ({"resume": 2}, "resume: the index 2 needs multiple_checkpoints=True"),
        (
            {"max_checkpoints": 2},
            "max_checkpoints: needs multiple_checkpoints=True; without it only the newest is kept",
        ),
        ({"log_every": 0}, "log_every: must be a whole number from 1, -1 for every epoch, or None, not 0 (int)"),
        ({"clip_grad": -1}, "clip_grad: must be a positive number, or None, not -1 (int)"),
        (
            {"grad_accumulation_steps": 0},
            "grad_accumulation_steps: must be a whole number from 1, a table such as {0: 8, 5: 2} (epoch, from 0 -> batches), or None, not 0 (int)",
        ),
        ({"shuffle_train": "yes"}, "shuffle_train: must be True or False, not 'yes' (str)"),
        (
            {"log_with": "mlflo"},
            "log_with: unknown tracker 'mlflo', did you mean 'mlflow'? Allowed are mlflow, aim, clearml, comet_ml, dvclive, swanlab, tensorboard, trackio, wandb, or None",
        ),
        (
            {"collate_fn": list, "collate_fn_val": list},
            "collate_fn_val: is given together with collate_fn: give collate_fn, or one for each",
        ),
        (
            {"monitor": {"grad_nrm": True}},
            "monitor.grad_nrm: unknown argument, did you mean 'grad_norm'? Allowed are learning_rate, epoch, train_loss, validation_loss, additional_metrics, grad_norm, gpu_utilization, cpu_utilization, checkpoint",
        ),
        ({"checkpoint_every": 5}, 'checkpoint_every: must be a string such as "5 steps", not 5 (int)'),
        ({"monitor": {"epoch": "no"}}, "monitor.epoch: must be True or False, not 'no' (str)"),
        (
            {"metrics": "accuracy"},
            "metrics: str is not a Metric object: give FunctionMetric('accuracy', function, greater_is_better=...)",
        ),
        (
            {"metrics": {"dev": [len]}},
            "metrics['dev']: builtin_function_or_method is not a Metric object: wrap it, FunctionMetric(\"name\", function, greater_is_better=...)",
        ),
        (
            {"callback": Callback},
            "callback: must be a Callback, not <class 'accmt.callbacks.Callback'> (type): give an instance, not the class",
        ),
        (
            {"evaluate_every": "2 steps", "evaluate_every_n_steps": 3},
            "evaluate_every: is given together with evaluate_every_n_steps: give one of them",
        ),
        (
            {"evaluate_every_n_steps": -3},
            "evaluate_every_n_steps: must be a whole number from 1, or None, not -3 (int)",
        ),
        (
            {"dataloader_num_workers": -1},
            "dataloader_num_workers: must be a whole number from 0, or None, not -1 (int)",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_one_wrong_argument(arguments, text):
    constructor(f"1 mistake in Trainer(...):\n  {text}", **arguments)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: HyperParameters(epoch=1),
            "HyperParameters:\n  epoch: unknown key, did you mean 'epochs'? Allowed are epochs, max_steps, batch_size, optimizer, optim_kwargs, scheduler, scheduler_kwargs, step_scheduler_per_epoch",
        ),
        (
            lambda: Monitor(grad_nrm=True),
            "Monitor(...):\n  grad_nrm: unknown argument, did you mean 'grad_norm'? Allowed are learning_rate, epoch, train_loss, validation_loss, additional_metrics, grad_norm, gpu_utilization, cpu_utilization, checkpoint",
        ),
        (lambda: Monitor(epoch="no"), "Monitor(...):\n  epoch: must be True or False, not 'no' (str)"),
        (
            lambda: Trainer(HPS, "nowhere").register_model_saving("best_valid_loss", saving_bellow=1),
            "register_model_saving(...):\n  saving_bellow: unknown argument, did you mean 'saving_below'? Allowed are model_saving, saving_below, saving_above, name, patience",
        ),
        (
            lambda: Trainer(HPS, "nowhere").evaluate(AcceleratorModule(), dataset=[]),
            "evaluate(...):\n  dataset: unknown argument, did you mean 'datasets'? Allowed are module, datasets, loss_fn, metrics",
        ),
        (
            lambda: Trainer(HPS, "nowhere").fit(AcceleratorModule(), train_datset=[]),
            "fit(...):\n  train_datset: unknown argument, did you mean 'train_dataset'? Only for a model given by its name there are more: those of from_pretrained",
        ),
    ],
    ids=["HyperParameters", "Monitor", "a value of Monitor", "register_model_saving", "evaluate", "fit"],
)
def test_a_misspelt_argument_is_refused_with_a_suggestion(call, text):
    with pytest.raises(ConfigError) as caught:
        call()
    assert str(caught.value) == f"1 mistake in {text}"


def test_a_torchmetrics_object_has_to_be_wrapped():
    metric = torchmetrics.classification.BinaryAccuracy()
    constructor(
        '1 mistake in Trainer(...):\n  metrics: BinaryAccuracy is not a Metric object: wrap it, TorchMetric("name", metric)',
        metrics=metric,
    )


@pytest.mark.proves("Trainer")
def test_all_mistakes_at_once():
    with pytest.raises(ConfigError) as caught:
        Trainer({"batch_size": 0, "optimizer": "AdmW"}, "nowhere", multiple_checkpoints=1, patience=-2)
    lines = str(caught.value).splitlines()
    assert lines[0] == "4 mistakes in Trainer(...):"
    assert lines[1].startswith("  batch_size: must be a whole number of at least 1")
    assert "did you mean 'AdamW'?" in lines[2]
    assert lines[3:] == [
        "  multiple_checkpoints: must be True or False, not 1 (int)",
        "  patience: must be a whole number from 1, not -2 (int)",
    ]


def test_optimizer_arguments_are_an_error_of_the_trainer():
    hps = HyperParameters(1, optimizer="AdamW", optim_kwargs={"learning_rate": 1})
    with pytest.raises(ConfigError, match=r"optim_kwargs.learning_rate: AdamW has no such argument"):
        Trainer(hps, "nowhere")
    hps = HyperParameters(1, scheduler="StepLR")
    with pytest.raises(ConfigError, match=r"scheduler_kwargs.step_size: missing"):
        Trainer(hps, "nowhere")


def test_a_wrong_cadence():
    constructor(
        "unknown unit 'epoks'\n"
        "    2 epoks\n"
        "      ^^^^^\n"
        "  the units are: steps, epochs, evaluations, samples, seconds, minutes, hours and %\n"
        "  did you mean 'epochs'?",
        RuleError,
        checkpoint_every="2 epoks",
    )


def test_a_rule_that_cannot_be_parsed(tmp_path):
    trainer = Trainer(HPS, tmp_path)
    with pytest.raises(RuleError) as caught:
        trainer.register_model_saving("best_accuracy@")
    assert str(caught.value).splitlines()[1:3] == ["    best_accuracy@", "                  ^"]


class Refused:
    """Runs `fit` and expects a complete text, and nothing written."""

    def __init__(self, trainer):
        self._make = trainer

    def __call__(self, text, module, *datasets, error=ConfigError, rules=(), **arguments):
        training = self._make(**arguments)
        for rule in rules:
            training.register_model_saving(rule)
        with pytest.raises(error) as caught:
            training.fit(module, *datasets)
        assert str(caught.value) == text
        assert not training.model_path.exists()


@pytest.fixture
def refused(trainer):
    return Refused(trainer)


def test_modules(refused, regression, data):
    class NoModel(AcceleratorModule):
        def training_step(self, batch):
            """Nothing."""

    class NoSteps(AcceleratorModule):
        def __init__(self):
            self.model = nn.Linear(1, 1)

    refused(
        "1 mistake in fit(...):\n  NoModel: has no model: set self.model to a torch.nn.Module in its constructor",
        NoModel(),
        data(4),
    )
    refused(
        "2 mistakes in fit(...):\n"
        "  NoSteps: has no training_step(self, batch)\n"
        "  NoSteps: has no validation_step(self, key, batch), and val_dataset is given",
        NoSteps(),
        data(4),
        data(4),
    )
    refused(
        "1 mistake in fit(...):\n  module: is the class Regression: give an instance, Regression()",
        regression,
        data(4),
    )
    also = "fit also takes a torch.nn.Module with loss_fn, and models of transformers"
    refused(f"1 mistake in fit(...):\n  module: must be an AcceleratorModule ({also}), not int", 3, data(4))


def test_datasets(refused, regression, data):
    empty = TensorDataset(torch.empty(0, 4), torch.empty(0, 1))
    refused(
        "3 mistakes in fit(...):\n"
        "  val_dataset: has two keys that read '1'\n"
        "  train_dataset: is empty\n"
        "  val_dataset['2']: is empty",
        regression(),
        empty,
        {1: data(4), "1": data(4), "2": empty},
    )
    refused(
        "1 mistake in fit(...):\n  train_dataset: is missing, and the module has no get_train_dataloader", regression()
    )


@pytest.mark.parametrize(
    ("validation", "text"),
    [
        (
            lambda data: {"dev": None},
            "val_dataset['dev']: must be a dataset with __getitem__ and __len__, or a torch IterableDataset, not None",
        ),
        (
            lambda data: "dev",
            "val_dataset: must be a dataset with __getitem__ and __len__, or a torch IterableDataset, not 'dev' (str)",
        ),
        (
            lambda data: DataLoader(data(4)),
            "val_dataset: is a DataLoader: give its dataset, or return the loader from the module's get_validation_dataloader",
        ),
    ],
)
def test_things_that_are_no_datasets(refused, regression, data, validation, text):
    refused(f"1 mistake in fit(...):\n  {text}", regression(), data(4), validation(data))


def test_samplers_and_batches_that_cannot_work(refused, regression, data):
    dataset = data(6)
    refused(
        "1 mistake in fit(...):\n  sampler: must be a sampler, a list of samplers, or a list of indices, not 3 (int)",
        regression(),
        dataset,
        sampler=3,
    )
    refused(
        "1 mistake in fit(...):\n  sampler: a list of samplers must contain only samplers",
        regression(),
        dataset,
        sampler=[RandomSampler(dataset), 3],
    )
    refused(
        "1 mistake in fit(...):\n"
        "  train_dataset: has no whole batch: with dataloader_drop_last the batch must not be larger than the dataset",
        regression(),
        dataset,
        batch_size=8,
        dataloader_drop_last=True,
    )


def test_optimizers_that_train_nothing(refused, regression, data):
    class Foreign(regression):
        def get_optimizer(self):
            return torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)

    refused(
        "1 mistake in fit(...):\n  get_optimizer: SGD holds no parameter of Foreign.model: nothing would be trained",
        Foreign(),
        data(4),
    )


def test_a_model_path_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"model_path: '.*file' is a file: give a folder"):
        Trainer(HPS, tmp_path / "file")


def test_a_configuration_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nofile.yaml: no such file"):
        Trainer(str(tmp_path / "nofile.yaml"), tmp_path / "model")
    (tmp_path / "hps.yaml").write_text("epochs: x\n")
    with pytest.raises(ConfigError, match=r"hps.yaml: epochs: must be a whole number"):
        Trainer(str(tmp_path / "hps.yaml"), tmp_path / "model")


def test_metrics(refused, regression, data):
    one, other = (
        FunctionMetric("error", abs, greater_is_better=True),
        FunctionMetric("error", abs, greater_is_better=False),
    )
    refused(
        "1 mistake in fit(...):\n  metrics: 'dve' is not a dataset, did you mean 'dev'? The datasets are: dev, test",
        regression(),
        data(4),
        {"dev": data(4), "test": data(4)},
        metrics={"dve": one},
    )
    refused(
        "1 mistake in fit(...):\n  metrics: 'error' is better in different directions on different datasets",
        regression(),
        data(4),
        {"dev": data(4), "test": data(4)},
        metrics={"dev": one, "test": other},
    )
    refused(
        "1 mistake in fit(...):\n  metrics: 'error' is given twice (dataset 'valid')",
        regression(),
        data(4),
        data(4),
        metrics=[one, one],
    )


def test_rules_against_the_training(refused, regression, data):
    metrics = {"dev": FunctionMetric("accuracy", abs, True), "test": [FunctionMetric("f1", abs, True)]}
    refused(
        "unknown metric 'acuracy'\n"
        "    best_acuracy@dev/f1@test\n"
        "         ^^^^^^^\n"
        "  this training reports: accuracy (dev), f1 (test), train_loss, valid_loss (dev, test)\n"
        "  did you mean 'accuracy'?\n"
        "\n"
        "unknown dataset 'tset'\n"
        "    best_f1@tset\n"
        "            ^^^^\n"
        "  the datasets are: dev, test\n"
        "  did you mean 'test'?",
        regression(),
        data(4),
        {"dev": data(4), "test": data(4)},
        metrics=metrics,
        rules=["best_acuracy@dev/f1@test", "best_f1@tset"],
        error=RuleError,
    )


def test_a_patience_that_names_no_rule(trainer, regression, data):
    training = trainer(patience={"best_acc": 3})
    with pytest.raises(RuleError, match="'best_acc'"):
        training.fit(regression(), data(4), data(4))
    assert not training.model_path.exists()


def test_state_that_no_checkpoint_can_hold(refused, regression, data):
    class Odd(torch.optim.lr_scheduler.LambdaLR):
        def state_dict(self):
            return {"connection": object()}

    class Module(regression):
        pass

    refused(
        "1 mistake in fit(...):\n  scheduler: its state cannot be written to a checkpoint: object at 'connection'",
        Module(),
        data(4),
        hps={"scheduler": Odd, "scheduler_kwargs": {"lr_lambda": lambda step: 1.0}},
    )


class TestFirstEvaluation:
    """What only the first evaluation can show."""

    def fails(self, trainer, module, data, text, error, *metrics):
        with pytest.raises(error) as caught:
            trainer(metrics=list(metrics)).fit(module, data(8), {"dev": data(4)})
        assert text in str(caught.value)

    def test_a_metric_that_gets_nothing(self, trainer, regression, data):
        text = "validation_step for 'dev' returned nothing for the metric 'accuracy'; it returned: loss, error"
        self.fails(trainer, regression(), data, text, KeyError, FunctionMetric("accuracy", abs, True))

    def test_no_loss(self, trainer, regression, data):
        class NoLoss(regression):
            def validation_step(self, key, batch):
                return {"los": torch.tensor(1.0)}

        self.fails(trainer, NoLoss(), data, "validation_step for 'dev' returned no 'loss'; it returned: los", KeyError)

    def test_neither_dictionary_nor_loss(self, trainer, regression, data):
        class Wrong(regression):
            def validation_step(self, key, batch):
                return None

        text = "validation_step for 'dev' must return a dictionary or a loss, not None: is a return statement missing?"
        self.fails(trainer, Wrong(), data, text, TypeError)

    def test_a_metric_without_its_main_value(self, trainer, regression, data):
        class Other(Metric):
            def compute(self, predictions, targets):
                return {"accuracy": 1.0}

        text = "the metric 'error' on 'dev' did not compute 'error'; give main_metric=..."
        self.fails(trainer, regression(), data, text, KeyError, Other("error"))

    def test_a_metric_that_is_no_number(self, trainer, regression, data):
        metric = FunctionMetric("error", lambda p, t: (p - t).flatten(), greater_is_better=False)
        text = "the metric 'error' computed 'error' with 4 elements: a metric is one number"
        self.fails(trainer, regression(), data, text, ValueError, metric)


@pytest.mark.parametrize(
    ("returned", "error", "text"),
    [
        (
            lambda out: None,
            TypeError,
            "Wrong.training_step must return a scalar tensor, not None: is a return statement missing?",
        ),
        (
            lambda out: 0.5,
            TypeError,
            "Wrong.training_step must return a scalar tensor, not float: return the tensor, not its item()",
        ),
        (
            lambda out: {"loss": out},
            TypeError,
            "Wrong.training_step must return a scalar tensor, not dict: return its loss",
        ),
        (lambda out: out, ValueError, "Wrong.training_step must return a scalar tensor, not one of shape (4, 1)"),
        (
            lambda out: out.mean().detach(),
            ValueError,
            "the loss of Wrong.training_step depends on no trained parameter: was it detached?",
        ),
    ],
)
def test_a_training_step_that_returns_no_loss(trainer, regression, data, returned, error, text):
    class Wrong(regression):
        def training_step(self, batch):
            return returned(self.model(batch[0]))

    with pytest.raises(error) as caught:
        trainer().fit(Wrong(), data(8))
    assert str(caught.value) == text
    assert caught.value.__notes__ == ["raised in Wrong.training_step, epoch 1, step 0"]


def test_a_loss_of_one_element_is_a_scalar(trainer, regression, data):
    class OneElement(regression):
        def training_step(self, batch):
            return super().training_step(batch).reshape(1)

    training = trainer(epochs=1)
    training.fit(OneElement(), data(8))
    assert training.state.finished


def test_a_training_within_a_step_of_another(trainer, regression, data):
    class Nested(regression):
        def training_step(self, batch):
            trainer().fit(regression(), data(4))

    with pytest.raises(RuntimeError, match="fit cannot start: a training is running and has called it"):
        trainer().fit(Nested(), data(4))


def test_best_of_an_unknown_rule(trainer, regression, data):
    training = trainer(epochs=1)
    with pytest.raises(ValueError, match="the rules are: none, because nothing was trained yet"):
        training.best("best_valid_loss")
    training.fit(regression(), data(4), data(4))
    with pytest.raises(ValueError, match="there is no rule 'best_vaild_loss'; the rules are: best_valid_loss"):
        training.best("best_vaild_loss")
    assert training.best("valid_loss").step == 1

"""Methods that cannot be called are errors before the first step; those that are never called are warned of."""

import pytest
import torch
from torch import nn

from accmt import AcceleratorModule, Callback, ConfigError, ExtendedAcceleratorModule
from accmt.setup.method_check import method_problems, uncalled


class Plain(AcceleratorModule):
    """A module with a wrong or a surplus method."""

    def __init__(self, **attributes):
        self.model = nn.Linear(4, 1)
        vars(self).update(attributes)

    def training_step(self, batch):
        return nn.functional.mse_loss(self.model(batch[0]), batch[1])


def like(base=Plain, **methods):
    return type("Mine", (base,), methods)


def training_step_of_two(self, batch, batch_idx):
    pass


def validation_step_of_one(self, batch):
    pass


def validation_step_turned_around(self, batch, key):
    pass


def validation_step_of_lightning(self, batch, batch_idx):
    pass


def scheduler_of_one(self, optimizer):
    pass


def scheduler_turned_around(self, optimizer, epochs, steps_per_epoch):
    pass


async def asynchronous(self, batch):
    pass


def yielding(self):
    yield


def collate(samples):
    return samples


@pytest.mark.parametrize(
    ("methods", "problem"),
    [
        ({"training_step": training_step_of_two}, "Mine.training_step: takes (batch, batch_idx), and it is called with (batch): define training_step(self, batch)"),
        ({"training_step": asynchronous}, "Mine.training_step: is asynchronous, and the trainer would not await it: define training_step(self, batch)"),
        ({"training_step": None}, "Mine.training_step: is not a method: define training_step(self, batch)"),
        ({"validation_step": validation_step_of_one}, "Mine.validation_step: takes (batch), and it is called with (key, batch): define validation_step(self, key, batch)"),
        ({"validation_step": validation_step_turned_around}, "Mine.validation_step: takes (batch, key), and it is called with (key, batch): the order differs: define validation_step(self, key, batch)"),
        ({"validation_step": validation_step_of_lightning}, "Mine.validation_step: takes (batch, batch_idx), and it is called with (key, batch): the order differs: define validation_step(self, key, batch)"),
        ({"get_optimizer": scheduler_of_one}, "Mine.get_optimizer: takes (optimizer), and it is called with (): define get_optimizer(self)"),
        ({"get_scheduler": scheduler_of_one}, "Mine.get_scheduler: takes (optimizer), and it is called with (optimizer, steps_per_epoch, epochs): define get_scheduler(self, optimizer, steps_per_epoch, epochs)"),
        ({"get_scheduler": scheduler_turned_around}, "Mine.get_scheduler: takes (optimizer, epochs, steps_per_epoch), and it is called with (optimizer, steps_per_epoch, epochs): the order differs: define get_scheduler(self, optimizer, steps_per_epoch, epochs)"),
        ({"get_train_dataloader": yielding}, "Mine.get_train_dataloader: contains a yield, and the trainer would not iterate over it: define get_train_dataloader(self, dataset)"),
        ({"get_validation_dataloader": training_step_of_two}, "Mine.get_validation_dataloader: takes (batch, batch_idx), and it is called with (dataset): define get_validation_dataloader(self, dataset)"),
        ({"collate_fn_train": collate}, "Mine.collate_fn_train: takes (), and it is called with (samples)"),
        ({"collate_fn_val": 3}, "Mine.collate_fn_val: must be a function of (samples), not 3 (int)"),
    ],
)  # fmt: skip
def test_a_method_of_a_module_that_cannot_be_called(methods, problem):
    assert [str(found) for found in method_problems(like(**methods)(), [])] == [problem]


@pytest.mark.parametrize(
    ("methods", "problem"),
    [
        ({"on_epoch_end": training_step_of_two}, "Mine.on_epoch_end: takes (batch, batch_idx), and it is called with (): define on_epoch_end(self)"),
        ({"on_before_training_step": lambda self: None}, "Mine.on_before_training_step: takes (), and it is called with (batch): define on_before_training_step(self, batch)"),
        ({"on_fit_end": yielding}, "Mine.on_fit_end: contains a yield, and the trainer would not iterate over it: define on_fit_end(self)"),
    ],
)  # fmt: skip
def test_a_hook_that_cannot_be_called(methods, problem):
    assert [str(found) for found in method_problems(Plain(), [like(Callback, **methods)()])] == [problem]


@pytest.mark.parametrize(
    "methods",
    [
        {"validation_step": lambda self, key, batch, extra=None: None},
        {"validation_step": lambda self, *args: None},
        {"validation_step": staticmethod(lambda key, batch: None)},
        {"validation_step": lambda self, name, inputs: None},
        {"collate_fn_train": staticmethod(collate)},
        {"collate_fn_val": lambda self, samples: None},
    ],
)
def test_methods_that_can_be_called(methods):
    assert method_problems(like(**methods)(), []) == []


def test_they_are_errors_before_the_first_step(trainer, data):
    wrong = like(training_step=training_step_of_two, validation_step=validation_step_of_one)
    training = trainer(callback=like(Callback, on_fit_start=training_step_of_two)())
    with pytest.raises(ConfigError, match="3 mistakes in fit") as caught:
        training.fit(wrong(), data(8), data(4))
    assert "on_fit_start" in str(caught.value)
    assert not training.model_path.exists()
    with pytest.raises(ConfigError, match="validation_step"):
        training.evaluate(wrong(), data(4))
    for function, text in [
        (lambda: None, r"takes \(\)"),
        (torch.nn.Linear, "is the class Linear: give an instance"),
    ]:
        with pytest.raises(ConfigError, match=text):
            trainer(collate_fn=function)


NEVER = "is never called by the trainer:"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("get_train_dataloder", "did you mean get_train_dataloader?"),
        ("get_optimiser", "did you mean get_optimizer?"),
        ("collate_fn_valid", "did you mean collate_fn_val?"),
        ("collate_fn", "write collate_fn_train and collate_fn_val, or give it to the trainer: Trainer(collate_fn=...)"),
        ("step", "write training_step(self, batch) and validation_step(self, key, batch)"),
        ("configure_optimizers", "write get_optimizer(self) and get_scheduler(self, optimizer, steps_per_epoch, epochs)"),
        ("on_epoch_end", "write on_epoch_end of a Callback, and give it to the trainer"),
        ("on_epoch_stat", "write on_epoch_start of a Callback, and give it to the trainer"),
        ("on_train_start", "write on_fit_start of a Callback, and give it to the trainer"),
        ("onFitStart", "write on_fit_start of a Callback, and give it to the trainer"),
        ("collateFnTrain", "did you mean collate_fn_train?"),
        ("batchSize", "did you mean batch_size?"),
    ],
)  # fmt: skip
def test_a_method_of_a_module_that_is_never_called(name, hint):
    assert uncalled(like(**{name: lambda self, *args: None})(), []) == [f"Mine.{name} {NEVER} {hint}"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("on_epoch_stat", "write on_epoch_start"),
        ("on_evaluation_ends", "write on_evaluation_end"),
        ("on_train_batch_end", "write on_after_training_step"),
        ("on_weekends", "there is no such hook (see accmt.callbacks.Callback)"),
        ("n_epoch_end", "write on_epoch_end"),
        ("onEpochEnd", "write on_epoch_end"),
        ("loadStateDict", "write load_state_dict"),
    ],
)
def test_a_method_of_a_callback_that_is_never_called(name, hint):
    assert uncalled(Plain(), [like(Callback, **{name: lambda self: None})()]) == [f"Mine.{name} {NEVER} {hint}"]


def test_names_of_the_users_own_are_left_alone():
    names = ("encode", "predict", "get_train_dataset", "loss", "train", "_on_epoch_stat", "log_images", "batch")
    assert uncalled(like(**dict.fromkeys(names, lambda self: None))(), []) == []
    assert uncalled(like(ExtendedAcceleratorModule, step=lambda self: None)(), []) == []
    assert uncalled(Plain(), [like(Callback, save=lambda self: None, report=lambda self: None)()]) == []
    both = type("Both", (Plain, Callback), {"on_epoch_end": lambda self: None})()
    assert uncalled(both, [both]) == []
    assert uncalled(Plain(collate=collate), [], [collate]) == []
    assert len(uncalled(Plain(collate=collate), [])) == 1


def test_a_hook_of_the_object_itself_is_called(trainer, regression, data):
    callback, called = Callback(), []
    callback.on_epoch_end = lambda: called.append(1)
    trainer(callback=callback).fit(regression(), data(8))
    assert called == [1, 1]

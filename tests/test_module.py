"""What a module has and what the trainer gives it."""

import pytest
import torch
from torch import nn

from accmt import AcceleratorModule, Callback, ConfigError, Monitor, set_seed
from accmt.tracking.tracker import NoTracker


class Plain(AcceleratorModule):
    """Does not call the constructor above."""

    def __init__(self):
        self.model = nn.Linear(2, 3)


@pytest.mark.proves("AcceleratorModule.__call__")
def test_len_call_freeze_unfreeze():
    module = Plain()
    assert len(module) == 9
    assert bool(module)
    inputs = torch.ones(1, 2)
    assert torch.equal(module(inputs), module.model(inputs))
    module.freeze(module.model)
    assert not any(parameter.requires_grad for parameter in module.model.parameters())
    module.unfreeze(module.model)
    assert all(parameter.requires_grad for parameter in module.model.parameters())


@pytest.mark.proves("AcceleratorModule.forward")
def test_forward_can_be_written(regression, data, trainer):
    class Doubled(regression):
        def forward(self, inputs):
            return 2 * self.model(inputs)

        def training_step(self, batch):
            return nn.functional.mse_loss(self(batch[0]), batch[1])

    module = Doubled()
    inputs = torch.ones(1, 4)
    assert torch.equal(module(inputs), 2 * module.model(inputs))
    trainer(epochs=1).fit(module, data(8))


def test_steps_that_are_missing_say_so():
    with pytest.raises(NotImplementedError, match="Plain has no training_step"):
        Plain().training_step(None)
    with pytest.raises(NotImplementedError, match="Plain has no validation_step"):
        Plain().validation_step("dev", None)


class Sent(NoTracker):
    """Keeps what it is told."""

    def __init__(self):
        self.values = []

    def log(self, values, step):
        self.values.append((step, dict(values)))


@pytest.fixture
def sent(monkeypatch):
    """What would go to a tracker."""
    tracker = Sent()
    monkeypatch.setattr("accmt.setup.resume._tracker", lambda plan, saved, description: tracker)
    return tracker


def test_log_sends_at_logging_steps(trainer, regression, data, sent):
    class Logging(regression):
        def training_step(self, batch):
            self.log({"norm": torch.tensor([2.0]), "lr": 0.5}, self.state.global_step)
            return super().training_step(batch)

    own = {"norm": 2.0, "lr": 0.5}
    trainer(epochs=1, log_every=2).fit(Logging(), data(20))
    assert [step for step, values in sent.values if values == own] == [0, 2, 4]
    sent.values.clear()
    trainer("epochs", epochs=2).fit(Logging(), data(20))
    assert [step for step, values in sent.values if values == own] == [0, 5]


def test_log_refuses_what_it_cannot_send(trainer, regression, data):
    class Wrong(regression):
        def training_step(self, batch):
            self.log({"weights": torch.ones(3)}, 0)

    with pytest.raises(ValueError, match=r"'weights' has the shape \(3,\): only single values can be logged"):
        trainer().fit(Wrong(), data(8))

    class Typo(regression):
        def training_step(self, batch):
            self.log({}, 0, reduction="max")

    with pytest.raises(ValueError, match="reduction is 'max': it must be 'sum' or 'mean'"):
        trainer().fit(Typo(), data(8))

    class OfAnotherTrainer(regression):
        def training_step(self, batch):
            self.log("loss", 1.0)

    with pytest.raises(TypeError) as caught:
        trainer().fit(OfAnotherTrainer(), data(8))
    example = "self.log({'accuracy': value}, self.state.global_step)"
    assert str(caught.value) == f"log takes a dictionary and the step, as in {example}, not str"


@pytest.mark.proves("AcceleratorModule(model)", "ExtendedAcceleratorModule(status_dict)")
def test_what_the_trainer_gives_a_module(trainer, regression, data):
    seen = []

    class Curious(regression):
        def training_step(self, batch):
            state = self.state
            seen.append(
                (state.global_step, state.train_step, state.epoch, state.is_last_training_batch, self.status_dict)
            )
            assert self.device == self.accelerator.device
            return super().training_step(batch)

    module = Curious()
    model = module.model
    training = trainer(epochs=2, grad_accumulation_steps=2)
    training.fit(module, data(12))
    assert seen == [
        (0, 0, 0, False, {"epoch_step": 0}),
        (0, 1, 0, False, {"epoch_step": 1}),
        (1, 2, 0, True, {"epoch_step": 2}),
        (2, 0, 1, False, {"epoch_step": 0}),
        (2, 1, 1, False, {"epoch_step": 1}),
        (3, 2, 1, True, {"epoch_step": 2}),
    ]
    assert module.model is model
    assert training.state.is_last_epoch
    assert training.state.num_checkpoints_made == 2


def test_a_teacher_is_placed_and_frozen_and_not_in_checkpoints(trainer, regression, data):
    from safetensors.torch import load_file

    class Student(regression):
        def __init__(self):
            super().__init__()
            self.teacher = nn.Sequential(nn.Linear(4, 1), nn.Dropout(0.5))

        def training_step(self, batch):
            assert not self.teacher.training
            target = self.teacher(batch[0])
            assert not target.requires_grad
            return nn.functional.mse_loss(self.model(batch[0]), target)

    module = Student()
    before = [parameter.clone() for parameter in module.teacher.parameters()]
    training = trainer(epochs=1)
    training.fit(module, data(8))
    assert all(torch.equal(a, b) for a, b in zip(before, module.teacher.parameters(), strict=True))
    [checkpoint] = (training.model_path / "checkpoints").iterdir()
    assert set(load_file(checkpoint / "model.safetensors")) == set(module.model.state_dict())


def test_collate_functions(trainer, regression, data):
    calls = []

    def collate(name):
        def function(samples):
            calls.append(name)
            return tuple(torch.stack(column) for column in zip(*samples, strict=True))

        return function

    trainer("a", epochs=1, collate_fn=collate("both"), sanity_check=False).fit(regression(), data(4), data(4))
    assert calls == ["both", "both"]
    calls.clear()
    trainer("b", epochs=1, collate_fn_train=collate("train"), collate_fn_val=collate("val")).fit(
        regression(), data(4), data(4)
    )
    assert calls == ["val", "train", "val"]  # first the trial of the evaluation
    calls.clear()

    class Own(regression):
        def collate_fn_train(self, samples):
            return collate("module")(samples)

    trainer("c", epochs=1, collate_fn=collate("both"), sanity_check=False).fit(Own(), data(4), data(4))
    assert calls == ["module", "both"]
    with pytest.raises(ConfigError) as caught:
        trainer("d", collate_fn_train=collate("train")).fit(Own(), data(4), data(4))
    assert str(caught.value) == (
        "1 mistake in fit(...):\n"
        "  collate_fn_train: is given to the trainer, and Own has its own: leave one of them out"
    )
    Own.collate_fn_val = Own.collate_fn_train
    with pytest.raises(ConfigError, match="collate_fn: is given to the trainer, and Own has its own"):
        trainer("e", collate_fn=collate("both")).fit(Own(), data(4), data(4))


def test_monitor_as_a_dictionary_and_switched_off(trainer, regression, data, sent):
    off = {"train_loss": False, "epoch": False, "validation_loss": False, "additional_metrics": False}
    for monitor, names in ((off, set()), (Monitor(), {"train_loss", "epoch", "val_loss"})):
        sent.values.clear()
        trainer(str(len(names)), epochs=1, monitor=monitor).fit(regression(), data(8), data(4))
        assert {name for _, values in sent.values for name in values} == names


def test_names_of_the_losses(trainer, regression, data, sent):
    training = trainer(epochs=1, train_loss_metric_name="tl", val_loss_metric_name="vl")
    training.fit(regression(), data(8), {"a": data(4), "b": data(4)})
    assert {name for _, values in sent.values for name in values} == {"tl", "epoch", "vl_a", "vl_b"}


def test_set_seed_seeds_everything():
    import random

    import numpy as np

    draws = []
    for _ in range(2):
        set_seed(7)
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]


@pytest.mark.parametrize("drop_last", [False, True])
def test_drop_last(trainer, regression, data, drop_last):
    training = trainer(epochs=1, dataloader_drop_last=drop_last)
    training.fit(regression(), data(10))
    assert training.state.global_step == (2 if drop_last else 3)


@pytest.mark.proves("Trainer(set_to_none)")
@pytest.mark.parametrize("set_to_none", [False, True])
def test_set_to_none(trainer, regression, data, set_to_none):
    class Look(Callback):
        def on_after_zero_grad(self, optimizer):
            self.gradients = [parameter.grad for parameter in self.module.model.parameters()]

    look = Look()
    trainer(epochs=1, set_to_none=set_to_none, callback=look).fit(regression(), data(8))
    assert all(gradient is None for gradient in look.gradients) == set_to_none


@pytest.mark.proves("Trainer(safe_serialization)")
@pytest.mark.parametrize("safe", [False, True])
def test_safe_serialization(trainer, regression, data, safe):
    training = trainer(epochs=1, safe_serialization=safe)
    training.fit(regression(), data(8), data(4))
    names = {path.name for path in training.best("valid_loss").folder.iterdir()}
    assert names == {"MANIFEST.json", "saving.json", "model.safetensors" if safe else "pytorch_model.bin"}


def test_workers(trainer, regression, data):
    class Workers(regression):
        def training_step(self, batch):
            return super().training_step(batch)

    for workers in (None, 2):
        training = trainer(str(workers), epochs=1, dataloader_num_workers=workers)
        training.fit(Workers(), data(8), data(4))
        assert training.state.global_step == 2

"""What a module brings and is given: its own optimizer and scheduler, a teacher, logging, freezing, updates by hand."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from accmt import Callback, ExtendedAcceleratorModule


class Rates(Callback):
    """The learning rate of each optimizer step, and the class of the optimizer."""

    def __init__(self):
        super().__init__()
        self.rates, self.kind = [], None

    def on_before_optimizer_step(self, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.kind = type(getattr(optimizer, "optimizer", optimizer)).__name__


@pytest.mark.proves("AcceleratorModule.get_optimizer")
def test_an_optimizer_and_a_scheduler_of_the_module_go_before_the_hyperparameters(trainer, regression, data):
    given = []

    class Own(regression):
        def get_optimizer(self):
            return torch.optim.Adam(self.model[0].parameters(), lr=0.5)

        def get_scheduler(self, optimizer, steps_per_epoch, epochs):
            given.append((type(optimizer).__name__, steps_per_epoch, epochs))
            return torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.1)

    module, rates = Own(), Rates()
    last = module.model[3].weight.detach().clone()
    trainer(callback=rates, hps={"scheduler": "Constant"}, grad_accumulation_steps=2).fit(module, data(12))
    assert given == [("Adam", 2, 2)]
    assert (rates.kind, rates.rates) == ("Adam", pytest.approx([0.5, 0.05, 0.005, 0.0005]))
    assert torch.equal(module.model[3].weight, last), "a layer that its optimizer does not hold"


@pytest.mark.proves("AcceleratorModule.get_optimizer")
def test_none_stands_for_those_of_the_hyperparameters(trainer, regression, data):
    """The scheduler of the hyperparameters steps the module's optimizer, and the other way round."""

    class Optimizer(regression):
        def get_optimizer(self):
            return torch.optim.Adam(self.model.parameters(), lr=0.5)

    class Scheduler(regression):
        def get_scheduler(self, optimizer, steps_per_epoch, epochs):
            return torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.1)

    hps = {"scheduler": "ExponentialLR", "scheduler_kwargs": {"gamma": 0.5}}
    for kind, expected in (
        (regression, ["SGD", 0.5, 0.25]),
        (Optimizer, ["Adam", 0.5, 0.25]),
        (Scheduler, ["SGD", 0.5, 0.05]),
    ):
        rates = Rates()
        trainer(kind.__name__, epochs=1, lr=0.5, callback=rates, hps=hps).fit(kind(), data(8))
        assert [rates.kind, *rates.rates] == expected


@pytest.mark.proves(
    "AcceleratorModule.freeze",
    "AcceleratorModule.freeze(module)",
    "AcceleratorModule.unfreeze",
    "AcceleratorModule.unfreeze(module)",
)
def test_frozen_layers_are_not_trained_and_unfrozen_ones_are(trainer, regression, data):
    class Frozen(regression):
        def __init__(self):
            super().__init__()
            self.freeze(self.model)
            self.unfreeze(self.model[3])

    module = Frozen()
    first, last = (module.model[place].weight.detach().clone() for place in (0, 3))
    trainer(epochs=1).fit(module, data(8))
    assert torch.equal(module.model[0].weight, first)
    assert not torch.equal(module.model[3].weight, last)


class Scaled(nn.Module):
    """A linear layer whose output is scaled by an argument of each call."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, inputs, scale=1.0):
        return scale * self.layer(inputs)


@pytest.mark.proves(
    "AcceleratorModule.__call__",
    "AcceleratorModule.__call__(*args)",
    "AcceleratorModule.__call__(**kwargs)",
    "AcceleratorModule.__len__",
    "AcceleratorModule.forward",
    "AcceleratorModule.forward(*args)",
    "AcceleratorModule.forward(**kwargs)",
)
def test_len_and_call_of_a_module_that_is_trained(trainer, regression, data):
    """The module is called like its model, with all arguments, and counted like it, in the middle of a training."""
    seen = []

    class Called(regression):
        def __init__(self):
            self.model = Scaled()

        def training_step(self, batch):
            single = self(batch[0])
            doubled, tripled = self(batch[0], scale=2.0), self.forward(batch[0], 3.0)
            seen.append((len(self), torch.equal(doubled, 2 * single), torch.equal(tripled, 3 * single)))
            return nn.functional.mse_loss(single, batch[1])

    trainer(epochs=1).fit(Called(), data(4))
    assert seen == [(5, True, True)]


class Student(nn.Module):
    """Nothing but a linear layer, under a name of its own."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, inputs):
        return self.layer(inputs)


@pytest.mark.proves("AcceleratorModule(teacher)")
def test_a_teacher_teaches_and_stays_as_it_is(trainer, regression, data):
    seen = []

    class Distilled(regression):
        def __init__(self):
            self.model = Student()
            self.teacher = nn.Sequential(nn.Linear(4, 1), nn.BatchNorm1d(1), nn.Dropout(0.9))

        def training_step(self, batch):
            taught = self.teacher(batch[0])
            parameters = list(self.teacher.parameters())
            seen.append(
                (
                    self.teacher.training,
                    taught.requires_grad,
                    any(parameter.requires_grad for parameter in parameters),
                    {parameter.device for parameter in parameters} == {self.device},
                    torch.equal(taught, self.teacher(batch[0])),
                )
            )
            return nn.functional.mse_loss(self.model(batch[0]), taught)

        def validation_step(self, key, batch):
            return nn.functional.mse_loss(self.model(batch[0]), self.teacher(batch[0]))

    module = Distilled()
    before = {name: value.clone() for name, value in module.teacher.state_dict().items()}
    training = trainer(epochs=5, lr=0.2)
    training.fit(module, data(20), data(8))
    assert set(seen) == {(False, False, False, True, True)}
    assert all(torch.equal(value, before[name]) for name, value in module.teacher.state_dict().items())
    first = training.decisions[0].verdicts[0].kept[0].values[0]
    assert training.state.best_valid_loss < first / 2, "it learns from the teacher"
    [checkpoint] = (training.model_path / "checkpoints").iterdir()
    saved = torch.load(training.best("best_valid_loss").folder / "pytorch_model.bin", weights_only=True)
    assert set(load_file(checkpoint / "model.safetensors")) == set(saved) == {"layer.weight", "layer.bias"}


class Logging:
    """A module that logs in each training step."""

    def __new__(cls, regression, values, **options):
        class Module(regression):
            def training_step(self, batch):
                self.log(values, step=self.state.global_step, **options)
                return super().training_step(batch)

        return Module()


@pytest.mark.proves("AcceleratorModule.log", "AcceleratorModule.log(values)", "AcceleratorModule.log(step)")
def test_a_module_logs_at_the_steps_of_the_trainer(trainer, regression, data, runs):
    values = {"tensor": torch.tensor([2.5]), "whole": 3, "fraction": 0.25}
    trainer("two", epochs=1, log_with="told", log_every=2).fit(Logging(regression, values), data(20))
    trainer("never", epochs=1, log_with="told", log_every=None).fit(Logging(regression, values), data(20))
    assert [runs[0].of(name) for name in values] == [dict.fromkeys((0, 2, 4), value) for value in (2.5, 3.0, 0.25)]
    assert runs[1].sent == []


@pytest.mark.proves("AcceleratorModule(tracker)")
def test_a_module_may_log_by_the_tracker_itself(trainer, regression, data, runs):
    class Always(regression):
        def training_step(self, batch):
            self.tracker.log({"always": 1.0}, self.state.global_step)
            return super().training_step(batch)

    trainer(epochs=1, log_with="told", log_every=None).fit(Always(), data(12))
    assert runs[0].of("always") == dict.fromkeys((0, 1, 2), 1.0)


@pytest.mark.proves("AcceleratorModule.log(reduction)")
@pytest.mark.parametrize(
    ("options", "refused"), [({}, None), ({"reduction": "sum"}, None), ({"reduction": "max"}, "max")]
)
def test_on_one_process_each_reduction_is_the_value_itself(trainer, regression, data, runs, options, refused):
    """Two processes are in test_effects_processes.py."""
    training = trainer(epochs=1, log_with="told", log_every=1)
    module = Logging(regression, {"tensor": torch.tensor(2.0)}, **options)
    if refused:
        with pytest.raises(ValueError, match="reduction is 'max': it must be 'sum' or 'mean'"):
            training.fit(module, data(4))
    else:
        training.fit(module, data(4))
        assert runs[0].of("tensor") == {0: 2.0}


@pytest.mark.proves(
    "AcceleratorModule.pad",
    "AcceleratorModule.pad(value)",
    "AcceleratorModule.pad(padding)",
    "AcceleratorModule.pad(max_length)",
    "AcceleratorModule.pad(side)",
    "AcceleratorModule.pad(op)",
)
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [[1.0, 2.0], [3.0, 0.0]]),
        ({"value": 9.0}, [[1.0, 2.0], [3.0, 9.0]]),
        ({"side": "left"}, [[1.0, 2.0], [0.0, 3.0]]),
        ({"padding": "max_length", "max_length": 3}, [[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]]),
        ({"op": None}, None),
        ({"op": "cat"}, [1.0, 2.0, 3.0, 0.0]),
    ],
)
def test_a_module_pads(regression, arguments, expected):
    tensors = [torch.tensor([1.0, 2.0]), torch.tensor([3.0])]
    padded = regression().pad(tensors, **{"value": 0.0, "op": "stack", **arguments})
    if expected is None:
        assert [tensor.tolist() for tensor in padded] == [[1.0, 2.0], [3.0, 0.0]]
    else:
        assert padded.tolist() == expected


class Manual(ExtendedAcceleratorModule):
    """Trains by itself, as told; it keeps the index of each batch in its epoch."""

    def __init__(self, train):
        self.model = nn.Linear(4, 1)
        self.train, self.batches = train, []

    def training_step(self, batch):
        self.batches.append(self.status_dict["epoch_step"])
        loss = self.model(batch[0]).square().mean()
        self.train(self, loss)
        return loss.detach()


def moved_after(trainer, data, train, path="model"):
    """(whether the weights moved, the learning rate at the end) of a training of one epoch of two batches."""
    module, end = Manual(train), []

    class End(Callback):
        def on_fit_end(self):
            end.append(self.module._stepper.learning_rate)

    before = module.model.weight.detach().clone()
    hps = {"scheduler": "ExponentialLR", "scheduler_kwargs": {"gamma": 0.5}}
    trainer(path, epochs=1, lr=0.4, callback=End(), hps=hps).fit(module, data(8))
    assert module.batches == [0, 1]
    return not torch.equal(module.model.weight, before), end[0]


def backward(module, loss):
    module.backward(loss)


def optimizer_only(module, loss):
    module.backward(loss)
    module.step_optimizer()


def scheduler_only(module, loss):
    module.backward(loss)
    module.step_scheduler()


def both(module, loss):
    module.backward(loss)
    module.step()


def reset(module, loss):
    module.backward(loss)
    module.zero_grad()
    module.step()


@pytest.mark.proves(
    "ExtendedAcceleratorModule(status_dict)",
    "ExtendedAcceleratorModule.backward",
    "ExtendedAcceleratorModule.step",
    "ExtendedAcceleratorModule.step_optimizer",
    "ExtendedAcceleratorModule.step_scheduler",
    "ExtendedAcceleratorModule.zero_grad",
)
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
@pytest.mark.parametrize(
    ("train", "moved", "rate"),
    [
        (backward, False, 0.4),
        (optimizer_only, True, 0.4),
        (scheduler_only, False, 0.1),
        (both, True, 0.1),
        (reset, False, 0.1),
    ],
)
def test_each_part_of_an_update_by_hand(trainer, data, train, moved, rate):
    assert moved_after(trainer, data, train) == (moved, pytest.approx(rate))


@pytest.mark.proves("ExtendedAcceleratorModule.backward(loss)", "ExtendedAcceleratorModule.backward(**kwargs)")
def test_arguments_of_the_backward_pass(trainer, data):
    """They are those of torch: with `retain_graph` a loss can be differentiated twice, and counts twice."""
    gradients = []

    def twice(module, loss):
        module.backward(loss, retain_graph=True)
        once = module.model.weight.grad.clone()
        module.backward(loss)
        gradients.append(torch.allclose(module.model.weight.grad, 2 * once))
        module.zero_grad()

    moved_after(trainer, data, twice)
    assert gradients == [True, True]

    def freed(module, loss):
        module.backward(loss)
        module.backward(loss)

    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        moved_after(trainer, data, freed, "freed")


@pytest.mark.proves("ExtendedAcceleratorModule.zero_grad(set_to_none)")
@pytest.mark.parametrize(
    ("arguments", "gradient"), [({}, None), ({"set_to_none": True}, None), ({"set_to_none": False}, 0.0)]
)
def test_gradients_are_reset_to_none_or_zero(trainer, data, arguments, gradient):
    seen = []

    def resetting(module, loss):
        module.backward(loss)
        module.zero_grad(**arguments)
        found = module.model.weight.grad
        seen.append(None if found is None else found.abs().sum().item())

    moved_after(trainer, data, resetting)
    assert seen == [gradient, gradient]

"""Predicting a dataset: batched, in order, joined on the main process."""

import json
from collections import namedtuple
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from launching import launch
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset

from accmt import AcceleratorModule, Callback, ConfigError, Trainer

SCRIPT = Path(__file__).parent / "predicting.py"


@pytest.fixture
def predicting(regression):
    class Predicting(regression):
        def predict_step(self, batch):
            return self.model(batch[0])

    return Predicting


def by_hand(module, dataset):
    with torch.no_grad():
        return module.model.eval()(dataset[:][0])


@pytest.mark.proves("Trainer.predict", "Trainer.predict(*)")
def test_predictions_are_in_order_and_nothing_changes(trainer, predicting, data):
    module, dataset = predicting(dropout=0.5), data(11)
    module.model[0].eval()
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    random = torch.get_rng_state()
    predictions = trainer(batch_size=(2, 4)).predict(module, dataset)
    assert torch.equal(random, torch.get_rng_state())
    assert [part.training for part in module.model] == [False, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in module.model.state_dict().items())
    assert (module.state, module.accelerator) == (None, None)
    assert not predictions.requires_grad
    torch.testing.assert_close(predictions, by_hand(module, dataset))


def test_a_limit_of_evaluations_cuts_no_predictions(trainer, predicting, data):
    module, dataset = predicting(), data(11)
    torch.testing.assert_close(trainer(limit_val_batches=1).predict(module, dataset), by_hand(module, dataset))


def test_batches_are_those_of_evaluations(trainer, regression, data):
    seen = []

    class Counting(regression):
        def predict_step(self, batch):
            seen.append(batch["inputs"].shape)
            return batch["inputs"]

    def collate(samples):
        return {"inputs": torch.stack([inputs for inputs, _ in samples])}

    training = trainer(batch_size=(2, 4), collate_fn_val=collate)
    assert torch.equal(training.predict(Counting(), data(9)), data(9)[:][0])
    assert seen == [(4, 4), (4, 4), (1, 4)]


Pair = namedtuple("Pair", ["first", "second"])


@pytest.mark.proves("AcceleratorModule.predict_step", "AcceleratorModule.predict_step(batch)")
def test_everything_that_a_step_may_return(trainer, regression, data):
    class Nested(regression):
        def predict_step(self, batch):
            inputs, targets = batch
            names = [f"{value:.3f}" for value in targets[:, 0].tolist()]
            return {
                "both": (inputs, {"target": targets}),
                "names": names,
                "pair": Pair(inputs, len(inputs)),
                "none": None,
            }

    inputs, targets = data(10)[:]
    found = trainer().predict(Nested(), data(10))
    assert torch.equal(found["both"][0], inputs)
    assert torch.equal(found["both"][1]["target"], targets)
    assert found["names"] == [f"{value:.3f}" for value in targets[:, 0].tolist()]
    assert torch.equal(found["pair"].first, inputs)
    assert found["pair"].second == [4, 4, 2]
    assert found["none"] == [None, None, None]


def test_what_is_kept_does_not_follow_later_changes(trainer, predicting, data):
    class Reusing(predicting):
        def predict_step(self, batch):
            self.room = getattr(self, "room", torch.zeros(1, 1))
            return self.room.add_(1)

    assert trainer().predict(Reusing(), data(12)).tolist() == [[1], [2], [3]]


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        (
            lambda batch: torch.zeros(len(batch[0]), len(batch[0])),
            "a tensor of shape (*, 4), and for another a tensor of",
        ),
        (lambda batch: {str(len(batch[0])): 1}, "a dictionary of 4, and for another a dictionary of 2"),
        (lambda batch: (1,) * len(batch[0]), "a tuple of 4, and for another a tuple of 2"),
        (lambda batch: [1] if len(batch[0]) == 4 else 1, "a list, and for another single values"),
    ],
)
def test_predictions_that_cannot_be_joined(trainer, regression, data, returned, text):
    class Odd(regression):
        def predict_step(self, batch):
            return returned(batch)

    with pytest.raises(TypeError) as caught:
        trainer().predict(Odd(), data(6))
    assert text in str(caught.value)
    assert "return a list with one tensor for each sample" in str(caught.value)


class Named(AcceleratorModule):
    def __init__(self):
        self.model = nn.Bilinear(4, 4, 2)

    def forward(self, left, right):
        return self.model(left, right)


def named_data(*names):
    generator = torch.Generator().manual_seed(1)
    return [{name: torch.randn(4, generator=generator) for name in names} for _ in range(6)]


def test_without_a_step_forward_gets_what_cannot_be_a_target(trainer, regression, data):
    module, inputs = regression(), data(6)[:][0]
    training = trainer()
    for dataset in (inputs, TensorDataset(inputs)):
        torch.testing.assert_close(training.predict(module, dataset), by_hand(module, data(6)))
    module, dataset = Named(), named_data("right", "left")
    with torch.no_grad():
        expected = module(*(torch.stack([sample[name] for sample in dataset]) for name in ("left", "right")))
    torch.testing.assert_close(training.predict(module, dataset), expected)


def test_a_batch_that_may_hold_a_target_is_refused(trainer, regression, data):
    with pytest.raises(TypeError) as caught:
        trainer().predict(regression(), data(6))
    assert str(caught.value) == (
        "a batch has 2 parts, and Regression does not say which of them are inputs: "
        "write predict_step(self, batch), such as: return self.model(batch[0])"
    )
    with pytest.raises(TypeError) as caught:
        trainer().predict(Named(), named_data("left", "right", "label"))
    assert str(caught.value) == (
        "forward takes left, right, and the batch also has label: "
        "write predict_step(self, batch), such as: return self(left=batch['left'], right=batch['right'])"
    )


def test_a_plain_module_is_given_no_target(trainer, regression, data):
    module, training = regression(), trainer()
    expected = by_hand(module, data(6))
    for dataset in (data(6), data(6)[:][0]):
        torch.testing.assert_close(training.predict(module.model, dataset), expected)
    bilinear = nn.Bilinear(4, 4, 2)
    left, right = data(6)[:][0], data(6, 1)[:][0]
    with torch.no_grad():
        expected = bilinear(left, right)
    labels = torch.zeros(6)
    torch.testing.assert_close(training.predict(bilinear, TensorDataset(left, right, labels)), expected)
    rows = zip(left, right, labels, strict=True)
    named = [{"input1": one, "input2": two, "label": label} for one, two, label in rows]
    torch.testing.assert_close(training.predict(bilinear, named), expected)
    with pytest.raises(TypeError, match="forward takes input1, input2, and the batch also has other"):
        training.predict(bilinear, [{**sample, "other": 1} for sample in named])


def test_what_cannot_be_predicted(trainer, regression, predicting, data):
    class Lightning(regression):
        def predict_step(self, batch, batch_idx):
            return self.model(batch[0])

    class Empty(IterableDataset):
        def __iter__(self):
            return iter(())

    for given, text in [
        ((predicting, data(4)), "module: is the class Predicting: give an instance, Predicting()"),
        ((predicting(), data(0)), "dataset: is empty"),
        ((Lightning(), data(4)), "Lightning.predict_step: takes (batch, batch_idx), and it is called with (batch)"),
    ]:
        with pytest.raises(ConfigError) as caught:
            trainer().predict(*given)
        assert str(caught.value).startswith(f"1 mistake in predict(...):\n  {text}")
    with pytest.raises(ValueError, match="there is nothing to predict: the dataset has no samples"):
        trainer().predict(predicting(), Empty())
    trainer(epochs=1).fit(Lightning(), data(4))  # trained as ever
    with pytest.raises(ConfigError, match="unknown argument, did you mean 'dataset'"):
        trainer().predict(predicting(), datasets=data(4))


def test_a_callback_predicts_and_the_training_is_the_same(trainer, predicting, data):
    class Looking(Callback):
        def __init__(self):
            self.found = []

        def on_epoch_end(self):
            self.found.append(self.trainer.predict(self.module, data(6, 1)))
            assert self.state.global_step > 0
            assert self.module.state is self.state

    looking, ended = Looking(), []
    for callback in (looking, None):
        module = predicting(dropout=0.3)
        module.model.load_state_dict(ended[0][0] if ended else module.model.state_dict())
        ended.append([{name: value.clone() for name, value in module.model.state_dict().items()}])
        torch.manual_seed(3)
        trainer(f"{callback}", callback=callback).fit(module, data(12), data(4))
        ended[-1].append(module.model.state_dict())
    assert len(looking.found) == 2
    assert not torch.equal(*looking.found)
    assert all(torch.equal(value, ended[1][1][name]) for name, value in ended[0][1].items())


def test_an_error_says_where(trainer, regression, data):
    class Failing(regression):
        def predict_step(self, batch):
            raise LookupError("nothing there")

    module = Failing()
    with pytest.raises(LookupError, match="nothing there") as caught:
        trainer().predict(module, data(4))
    assert caught.value.__notes__ == [
        "raised in Failing.predict_step",
        "its batch: [float32 (4, 4), float32 (4, 1)]",
    ]
    assert module.model.training


@pytest.mark.xdist_group("processes")
def test_two_processes_predict_what_one_does(tmp_path):
    launch(SCRIPT, tmp_path / "one").check()
    launch(SCRIPT, tmp_path / "two", processes=2).check()
    one, main, other = (json.loads(Path(f"{tmp_path}/{name}.json").read_text()) for name in ("one-0", "two-0", "two-1"))
    assert main["predictions"] == one["predictions"]
    assert main["names"] == one["names"]
    assert len(one["names"]) == 11
    assert main["batches"] + other["batches"] == one["batches"] == 6
    assert other["predictions"] is other["names"] is None
    assert one["stream"] == main["stream"]
    assert main["failed"] == "LookupError: sample 4"
    assert other["failed"] == "Failed: process 0: LookupError: sample 4"
    assert main["mismatch"].startswith("TypeError: the predictions for a batch are a tensor of shape (*, 2)")
    assert other["mismatch"].startswith("Failed: TypeError: the predictions for a batch are a tensor of shape (*, 2)")
    assert main["best"] == other["best"]
    assert main["restored"] == other["restored"] == main["best"]


def test_a_callback_predicts_with_the_plain_module_of_its_training(tmp_path):
    """The target is left out if there is one, and the training keeps its metrics."""

    class Predicts(Callback):
        shapes: ClassVar = []

        def on_evaluation_end(self):
            self.shapes += [tuple(self.trainer.predict(self.module, one).shape) for one in (data, data[:][0])]

    data = TensorDataset(torch.randn(12, 3), torch.arange(12) % 2)
    trainer = Trainer({"epochs": 2, "batch_size": 4}, tmp_path, callback=Predicts(), quiet=True)
    history = trainer.fit(nn.Linear(3, 2), data, data, loss_fn=nn.CrossEntropyLoss())
    assert Predicts.shapes == [(12, 2)] * 4
    assert {value.metric for value in history} == {"train_loss", "valid_loss", "accuracy"}

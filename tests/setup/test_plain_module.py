"""A plain `torch.nn.Module` with a loss, given to `fit` and `evaluate`."""

import json
import textwrap

import pytest
import torch
from launching import launch
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset

from accmt import Callback, ConfigError, FunctionMetric, load_saving
from accmt.setup.plain_module import PlainModule

CLASSES = 3


def network(outputs=CLASSES):
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, outputs))


def classes(count, seed=0):
    inputs = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, inputs[:, :CLASSES].argmax(1))


def accuracy_of(model, data):
    inputs, targets = data.tensors
    with torch.no_grad():
        return (model.eval()(inputs).argmax(1) == targets).float().mean().item()


def header(capsys):
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.proves("Trainer.fit(loss_fn)", "Trainer.evaluate(loss_fn)")
def test_the_given_model_is_trained_in_place(trainer, capsys):
    """The weights change in the object that was given, and what is saved can be loaded into another one."""
    model, data = network(), classes(24)
    before = model[0].weight.detach().clone()
    training = trainer(epochs=4, lr=0.5)
    training.register_model_saving("best_accuracy@dev")
    training.fit(model, data, {"dev": data}, loss_fn=nn.CrossEntropyLoss())
    assert not torch.equal(model[0].weight, before)
    assert "metrics: higher is better for accuracy; lower is better for valid_loss" in header(capsys)
    saving = training.best("best_accuracy@dev")
    loaded = network()
    load_saving(saving.folder, loaded)
    assert accuracy_of(loaded, data) == pytest.approx(saving.values["accuracy@dev"])
    found = training.evaluate(loaded, {"dev": data}, loss_fn=nn.CrossEntropyLoss())
    assert found["dev"]["accuracy"] == pytest.approx(saving.values["accuracy@dev"])
    assert found["dev"].keys() == {"valid_loss", "accuracy"}


def test_a_resumed_training_ends_as_an_uninterrupted_one(trainer):
    class Cut(Callback):
        def on_after_optimizer_step(self, optimizer):
            if self.state.global_step == 7:
                raise KeyboardInterrupt

    def build():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, CLASSES))

    data, loss = classes(20), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    whole = build()
    expected = trainer("whole", epochs=3).fit(whole, data, {"dev": data}, loss_fn=loss)
    with pytest.raises(KeyboardInterrupt):
        trainer("cut", epochs=3, callback=Cut()).fit(build(), data, {"dev": data}, loss_fn=loss)
    resumed = build()
    history = trainer("cut", epochs=3).fit(resumed, data, {"dev": data}, loss_fn=loss)
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert list(history) == list(expected)
    assert [observation.progress.step for observation in history.observations] == [5, 10, 15]


def test_a_changed_loss_takes_effect_at_a_resume_and_is_reported(trainer, capsys):
    """Weights of the loss are a setting of the script: they are not in the checkpoint."""
    data, seen = classes(12), []

    class Loss(nn.CrossEntropyLoss):
        """A loss of a user's own; the next one is torch's."""

    Loss.__module__ = nn.CrossEntropyLoss.__module__

    def forward(self, output, target):
        seen.append(self.weight.tolist())
        return nn.functional.cross_entropy(output, target, self.weight)

    Loss.forward = forward
    trainer(epochs=1).fit(network(), data, loss_fn=Loss(torch.tensor([1.0, 2.0, 3.0])))
    del seen[:]
    capsys.readouterr()
    trainer(epochs=2).fit(network(), data, loss_fn=Loss(torch.tensor([5.0, 2.0, 3.0]), label_smoothing=0.1))
    assert seen[0] == [5.0, 2.0, 3.0]
    text = header(capsys)
    assert "loss_fn.weight was [1.0, 2.0, 3.0] and is [5.0, 2.0, 3.0]" in text
    assert "loss_fn.label_smoothing was 0.0 and is 0.1" in text


def test_state_of_a_users_loss_is_in_checkpoints(trainer):
    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.tensor(0))

        def forward(self, output, target):
            self.calls += self.training
            return nn.functional.cross_entropy(output, target)

    data = classes(12)
    trainer(epochs=1).fit(network(), data, {"dev": data}, loss_fn=Loss())
    loss = Loss()
    trainer(epochs=2).fit(network(), data, {"dev": data}, loss_fn=loss)
    assert loss.calls.item() == 6


def test_weights_of_a_loss_are_moved_to_the_device_of_the_targets():
    loss = nn.CrossEntropyLoss(weight=torch.ones(CLASSES))
    module = PlainModule(network().to("meta"), loss, None)
    batch = torch.ones(2, 4, device="meta"), torch.ones(2, dtype=torch.int64, device="meta")
    assert module.training_step(batch).device.type == "meta"
    assert loss.weight.device.type == "meta"


@pytest.mark.proves("Trainer.fit(metrics)")
@pytest.mark.parametrize(
    ("loss_fn", "outputs", "target", "expected"),
    [
        (nn.CrossEntropyLoss(), CLASSES, torch.arange(11) % CLASSES, {"accuracy"}),
        (nn.functional.mse_loss, 2, torch.randn(11, 2), {"mae", "mse"}),
        (nn.BCEWithLogitsLoss(), 2, torch.rand(11, 2).round(), {"accuracy"}),
        (nn.functional.binary_cross_entropy_with_logits, 1, torch.rand(11, 1).round(), {"accuracy"}),
        (nn.CrossEntropyLoss(), 2, torch.rand(11, 2).softmax(1), set()),
    ],
)
def test_defaults_follow_the_targets_and_are_exact(trainer, capsys, loss_fn, outputs, target, expected):
    """Eleven samples in batches of four: the values are those of the whole set at once."""
    inputs, model = torch.randn(11, 4), network(outputs)
    data = TensorDataset(inputs, target)
    values = trainer().evaluate(model, {"dev": data}, loss_fn=loss_fn)["dev"]
    assert values.keys() == {"valid_loss", *expected}
    with torch.no_grad():
        output = torch.cat([model(part) for part in inputs.split(4)])  # last bits depend on the size of a batch
    errors = (output.double() - target.double()) if output.shape == target.shape else torch.zeros(1)
    hits = (output.argmax(1) == target) if target.ndim == 1 else (output > 0) == (target > 0.5)
    exact = {"accuracy": hits.double().mean(), "mae": errors.abs().mean(), "mse": errors.square().mean()}
    for name in expected:
        assert values[name] == pytest.approx(exact[name].item(), abs=1e-12)
    said = "the targets of 'dev' do not say which metrics to compute: name them, fit(..., metrics=...)"
    assert (said in header(capsys)) == (not expected)


def test_probabilities_of_a_binary_loss_are_compared_with_a_half(trainer):
    model = nn.Sequential(nn.Linear(4, 1), nn.Sigmoid())
    inputs, target = torch.randn(9, 4), torch.rand(9, 1).round()
    values = trainer().evaluate(model, {"dev": TensorDataset(inputs, target)}, loss_fn=nn.BCELoss())["dev"]
    exact = ((model(inputs) > 0.5) == (target > 0.5)).float().mean().item()
    assert values["accuracy"] == pytest.approx(exact)


def test_ignored_targets_do_not_count(trainer):
    """Sequences of classes: the mean is over all positions that count, not over samples."""

    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, CLASSES)

        def forward(self, inputs):
            return self.layer(inputs).mT  # (N, C, length), as the loss wants it

    model, inputs = Tagger(), torch.randn(6, 5, 4)
    target = torch.randint(CLASSES, (6, 5))
    target[0, 1:] = 7
    values = trainer().evaluate(
        model, {"dev": TensorDataset(inputs, target)}, loss_fn=nn.CrossEntropyLoss(ignore_index=7)
    )["dev"]
    kept = target != 7
    assert values["accuracy"] == pytest.approx((model(inputs).argmax(1) == target)[kept].double().mean().item())


@pytest.mark.proves("Trainer.fit(metrics)", "Trainer.evaluate(metrics)")
def test_metrics_by_name_and_object(trainer, capsys):
    """They come in addition to the trainer's, and all others get (output, target)."""
    data = TensorDataset(torch.randn(10, 4), torch.randn(10, 1))
    worst = FunctionMetric("worst", lambda output, target: (output - target).abs().max(), greater_is_better=False)
    bias = FunctionMetric("bias", lambda output, target: (output - target).mean(), greater_is_better=False)
    model, training = network(1), trainer(metrics=bias)
    loss = nn.MSELoss()
    assert trainer().evaluate(model, data, loss_fn=loss, metrics=[])["0"].keys() == {"valid_loss"}
    assert training.evaluate(model, data, loss_fn=loss)["0"].keys() == {"valid_loss", "bias"}
    assert training.evaluate(model, data, loss_fn=loss, metrics="mae")["0"].keys() == {"valid_loss", "bias", "mae"}
    values = training.evaluate(model, data, loss_fn=loss, metrics=["mse", worst])["0"]
    error = model(data.tensors[0]) - data.tensors[1]
    assert values["mse"] == pytest.approx(error.square().mean().item())
    assert values["worst"] == pytest.approx(error.abs().max().item())
    training.fit(model, data, {"dev": data}, loss_fn=loss, metrics="mae")
    assert "metrics: lower is better for bias, mae, valid_loss" in header(capsys)


class Two(nn.Module):
    """A model of two inputs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, CLASSES)

    def forward(self, left, right):
        return self.layer(torch.cat([left, right], 1))


def samples(make):
    generator = torch.Generator().manual_seed(0)
    rows = [(torch.randn(4, generator=generator), torch.randn(4, generator=generator)) for _ in range(8)]
    return [make(left, right, index % CLASSES) for index, (left, right) in enumerate(rows)]


def test_kinds_of_batches_mean_the_same(trainer):
    """Several inputs, inputs by name with the target beside or among them."""
    kinds = [
        lambda left, right, target: (left, right, target),
        lambda left, right, target: ({"right": right, "left": left}, target),
        lambda left, right, target: {"target": target, "right": right, "left": left},
    ]
    torch.manual_seed(0)
    model = Two()
    results = [trainer().evaluate(model, {"dev": samples(kind)}, loss_fn=nn.CrossEntropyLoss()) for kind in kinds]
    assert results[0]["dev"].keys() == {"valid_loss", "accuracy"}
    assert results[1:] == results[:1] * 2
    weights = []
    for number, kind in enumerate(kinds):
        torch.manual_seed(1)
        model = Two()
        trainer(f"kind-{number}").fit(model, samples(kind), loss_fn=nn.CrossEntropyLoss())
        weights.append(model.layer.weight)
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


KINDS = (
    "a batch is (input, target), (input, ..., target), or a dictionary of arguments of forward (left, right) "
    "and the target, not "
)
DO = ": change the collate_fn, or write an AcceleratorModule"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda left, right, target: left, "float32 (4, 4)"),
        (lambda left, right, target: (left,), "[float32 (4, 4)]"),
        (
            lambda left, right, target: {"left": left, "right": right},
            "{'left': float32 (4, 4), 'right': float32 (4, 4)}",
        ),
        (
            lambda left, right, target: {"left": left, "right": right, "labels": target, "index": target},
            "{'left': float32 (4, 4), 'right': float32 (4, 4), 'labels': int64 (4,), 'index': int64 (4,)}",
        ),
    ],
)
@pytest.mark.parametrize("validates", [True, False])
def test_other_batches_are_refused_before_the_first_step(trainer, make, said, validates):
    model, data = Two(), samples(make)
    before = model.layer.weight.detach().clone()
    with pytest.raises(TypeError) as caught:
        trainer().fit(model, data, {"dev": data} if validates else None, loss_fn=nn.CrossEntropyLoss())
    assert str(caught.value) == KINDS + said + DO
    assert torch.equal(model.layer.weight, before)


def test_outputs_that_do_not_fit_their_targets(trainer):
    """(N, 1) and (N,) would be broadcast to (N, N) in silence."""
    data = TensorDataset(torch.randn(8, 4), torch.randn(8))
    with pytest.raises(TypeError) as caught:
        trainer().fit(network(1), data, data, loss_fn=lambda output, target: (output - target).square().mean())
    assert str(caught.value) == (
        "'mae' cannot compare an output, float32 (4, 1), with its target, float32 (4,): make them alike, or give fit "
        "other metrics (metrics=[] for none)"
    )


def test_a_loss_that_is_not_a_scalar(trainer):
    data = classes(8)
    with pytest.raises(TypeError) as caught:
        trainer().fit(network(), data, loss_fn=nn.CrossEntropyLoss(reduction="none"))
    assert str(caught.value) == "loss_fn must return a scalar tensor, not a Tensor of shape (4,)"


def test_a_stream_that_can_be_read_once_is_left_alone(trainer, capsys):
    class Once(IterableDataset):
        def __init__(self):
            self.rows = iter([*classes(8)])

        def __iter__(self):
            return self.rows

    training = trainer(epochs=1)
    history = training.fit(network(), classes(8), {"dev": Once()}, loss_fn=nn.CrossEntropyLoss(), metrics="accuracy")
    assert [value.metric for value in history if value.dataset == "dev"] == ["valid_loss", "accuracy"]
    history = trainer("other", epochs=1).fit(network(), classes(8), {"dev": Once()}, loss_fn=nn.CrossEntropyLoss())
    assert [value.metric for value in history if value.dataset == "dev"] == ["valid_loss"]
    assert "the targets of 'dev' do not say which metrics to compute" in header(capsys)


def test_looking_at_the_targets_changes_nothing(trainer):
    """The training is that without validation data, draw by draw, and the data set counts no reading of it."""

    class Counted(TensorDataset):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            torch.rand(1)
            return super().__getitem__(index)

    weights = []
    for number, metrics in enumerate((None, "accuracy")):
        torch.manual_seed(5)
        model, dev = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, CLASSES)), Counted(*classes(8).tensors)
        training = trainer(f"model-{number}", epochs=1)
        training.fit(model, classes(8), {"dev": dev}, loss_fn=nn.CrossEntropyLoss(), metrics=metrics)
        assert dev.reads == 8
        weights.append(model[1].weight)
    assert torch.equal(*weights)


class Centers(nn.Module):
    def __init__(self):
        super().__init__()
        self.centers = nn.Parameter(torch.zeros(3))

    def forward(self, output, target):
        return (output - self.centers).square().mean()


WITHOUT = (
    "loss_fn: is missing, and Linear is a plain torch.nn.Module: give the loss, for example "
    "loss_fn=torch.nn.CrossEntropyLoss(), or write an AcceleratorModule"
)
WANTED = "must be a Metric, one of accuracy, mae, mse, or a list of these"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, [WITHOUT]),
        ({"los_fn": nn.MSELoss()}, ["los_fn: unknown argument, did you mean 'loss_fn'?", WITHOUT]),
        ({"loss_fn": nn.MSELoss}, ["loss_fn: is the class MSELoss: give an instance"]),
        ({"loss_fn": "mse"}, ["loss_fn: must be a function of (output, target), not 'mse' (str)"]),
        ({"loss_fn": lambda x: x}, ["loss_fn: takes (x), and it is called with (output, target)"]),
        (
            {"loss_fn": nn.TripletMarginLoss()},
            ["loss_fn: takes (anchor, positive, negative), and it is called with (output, target)"],
        ),
        (
            {"loss_fn": Centers()},
            [
                "loss_fn: Centers has parameters to train, which no optimizer would hold: write an AcceleratorModule "
                "with get_optimizer"
            ],
        ),
        (
            {"loss_fn": nn.MSELoss(), "metrics": ["mae", "acc", 3]},
            [f"metrics: {WANTED}, not 'acc' (str)", f"metrics: {WANTED}, not 3 (int)"],
        ),
        ({"loss_fn": nn.MSELoss(), "metrics": {"dev": "mae"}}, [f"metrics: {WANTED}, not {{'dev': 'mae'}} (dict)"]),
    ],
)
def test_mistakes(trainer, data, arguments, said):
    training = trainer()
    with pytest.raises(ConfigError) as caught:
        training.fit(nn.Linear(4, 1), data(4), **arguments)
    title, *lines = str(caught.value).splitlines()
    assert title == f"{len(said)} mistake{'s' * (len(said) > 1)} in fit(...):"
    assert lines == [f"  {line}" for line in said]
    assert not training.model_path.exists()


def test_arguments_of_plain_modules_are_for_them_alone(trainer, regression, data):
    of = "is for a plain torch.nn.Module, and Regression is not one"
    for method, source in (("fit", "fit(...)"), ("evaluate", "evaluate(...)")):
        with pytest.raises(ConfigError) as caught:
            getattr(trainer(), method)(regression(), data(4), loss_fn=nn.MSELoss(), metrics="mae")
        assert str(caught.value) == (
            f"2 mistakes in {source}:\n"
            f"  loss_fn: {of}: the loss is that of the module\n"
            f"  metrics: {of}: give them to Trainer(metrics=...)"
        )
    with pytest.raises(ConfigError, match=r"^1 mistake in evaluate\(...\):\n  loss_fn: is missing, and Linear"):
        trainer().evaluate(nn.Linear(4, 1), data(4))
    with pytest.raises(ConfigError, match="module: is the class Linear: give an instance"):
        trainer().fit(nn.Linear, data(4))


def test_a_metric_given_twice(trainer, data):
    mae = FunctionMetric("mae", lambda output, target: (output - target).abs().mean(), greater_is_better=False)
    with pytest.raises(ConfigError, match="metrics: 'mae' is given twice"):
        trainer(metrics=mae).fit(nn.Linear(4, 1), data(4), data(4), loss_fn=nn.MSELoss(), metrics="mae")


def test_a_callback_evaluates_the_given_model(trainer):
    data, found = classes(8), []
    model = network()

    class Peek(Callback):
        def on_epoch_end(self):
            other = self.trainer.evaluate(self.module, {"dev": data, "more": data})
            assert other["dev"] == other["more"]
            found.append(self.trainer.evaluate(model, {"more": data}, loss_fn=nn.CrossEntropyLoss()))
            assert found[-1]["more"] == other["more"]

    for name, metrics in (("default", None), ("named", ["accuracy"])):
        arguments = {"loss_fn": nn.CrossEntropyLoss(), "metrics": metrics}
        history = trainer(name, epochs=2, callback=Peek()).fit(model, data, {"dev": data}, **arguments)
        recorded = [value.value for value in history if value.metric == "accuracy"]
        assert [values["more"]["accuracy"] for values in found[-2:]] == recorded


SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
from torch import nn
from torch.utils.data import TensorDataset
from accmt import Trainer, set_seed

set_seed(0)
inputs = torch.randn(13, 4)
data = TensorDataset(inputs, inputs[:, :3].argmax(1))
model = nn.Linear(4, 3)
hps = {"epochs": 2, "batch_size": 2, "optimizer": {"type": "SGD", "lr": 0.1}}
folder = Path(sys.argv[1])
trainer = Trainer(hps, folder / "model", dataloader_num_workers=0, quiet=True)
# Of these three samples, one process of two has no batch at all.
history = trainer.fit(
    model, data, {"dev": data, "few": TensorDataset(*data[:2])}, loss_fn=nn.CrossEntropyLoss(torch.ones(3))
)
exact = (model(inputs).argmax(1) == data.tensors[1]).double().mean().item()
values = [tuple(value) for value in history]
(folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps([values, repr(history), exact]))
"""


@pytest.mark.xdist_group("processes")
def test_two_processes(tmp_path):
    """Values are those of one, and each process returns the same history."""
    launch(textwrap.dedent(SCRIPT), tmp_path, processes=2).check()
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    values, shown, exact = first
    assert shown == "TrainingHistory(2 evaluations, 2 epochs)"
    assert [value for *_, dataset, metric, value in values if (dataset, metric) == ("dev", "accuracy")][-1] == (
        pytest.approx(exact)
    )
    assert {metric for *_, dataset, metric, _ in values if dataset == "few"} == {"valid_loss", "accuracy"}


@pytest.mark.parametrize("validation", [False, True])
def test_errors_name_the_model_of_the_user(trainer, validation):
    data = TensorDataset(torch.zeros(8, 3), torch.zeros(8, dtype=torch.long))
    with pytest.raises(RuntimeError) as caught:
        trainer().fit(nn.Linear(4, 2), data, data if validation else None, loss_fn=nn.CrossEntropyLoss())
    step = "validation_step of Linear on 'valid'" if validation else "training_step of Linear"
    assert caught.value.__notes__[0] == f"raised in {step}, epoch 1, step 0"
    with pytest.raises(RuntimeError) as caught:
        trainer().predict(nn.Linear(4, 2), data)
    assert caught.value.__notes__[0] == "raised in predict_step of Linear"


@pytest.mark.parametrize("samples", [[("a text", 0)] * 8, [(torch.zeros(4), "a")] * 8, ["a", "b", "c", "d"]])
def test_texts_are_answered_with_what_to_do(trainer, samples):
    with pytest.raises((AttributeError, TypeError)) as caught:
        trainer().fit(network(), samples, loss_fn=nn.CrossEntropyLoss())
    assert caught.value.__notes__[0] == "raised in training_step of Sequential, epoch 1, step 0"
    assert caught.value.__notes__[-1] == (
        "texts are not tensors: make tensors of them in the dataset or in a collate_fn"
    )

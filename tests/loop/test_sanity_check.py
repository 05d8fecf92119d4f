"""Mistakes of an evaluation are found before the first step, on one batch of each dataset, which changes nothing."""

import random

import numpy as np
import pytest
import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

from accmt import AcceleratorModule, Callback, FunctionMetric, Metric, MetricParallel, TorchMetric, set_seed

DATA = TensorDataset(torch.arange(32.0).reshape(16, 2), torch.arange(16) % 3)


class Classifier(AcceleratorModule):
    """Gives what it is told to in validations, and counts its training steps."""

    def __init__(self, gives=None):
        self.model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.gives = gives or (lambda loss, good: {"loss": loss, "accuracy": good})
        self.steps = 0

    def training_step(self, batch):
        self.steps += 1
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, key, batch):
        outputs = self.model(batch[0])
        return self.gives(nn.functional.cross_entropy(outputs, batch[1]), (outputs.argmax(1), batch[1]))


def accuracy(compute=lambda p, t: (p == t).float().mean()):
    return FunctionMetric("accuracy", compute, greater_is_better=True)


def fail(error):
    def compute(p, t):
        raise type(error)(*error.args)

    return compute


class Doubled(Metric):
    """Says nothing of its main value."""

    def compute(self, p, t):
        return {"doubled": 2.0}


@pytest.mark.parametrize(
    ("gives", "metrics", "error"),
    [
        (lambda loss, good: {"accuracy": good}, accuracy(), (KeyError, "returned no 'loss'; it returned: accuracy")),
        (lambda loss, good: None, accuracy(), (TypeError, "must return a dictionary or a loss, not None: is a return")),
        (lambda loss, good: {"loss": 0.5, "accuracy": good}, accuracy(), (ValueError, "must be a scalar tensor")),
        (lambda loss, good: {"loss": loss, "accuracy": 0.5}, accuracy(lambda p: p.mean()), (ValueError, "without dim")),
        (lambda loss, good: {"loss": loss, "accuracy": good[0]}, accuracy(), (TypeError, "takes .p, t., and valid")),
        (lambda loss, good: {"loss": loss, "accuracy": (good[0][:1], good[1])}, accuracy(), (ValueError, "different")),
        (lambda loss, good: {"loss": loss, "acuracy": good}, accuracy(), (KeyError, "is 'acuracy' meant for it")),
        (None, accuracy(fail(ValueError("bad"))), (ValueError, "bad")),
        (None, accuracy(fail(AttributeError("no"))), (AttributeError, "no")),
        (None, accuracy(lambda p, t: p), (ValueError, "a metric is one number")),
        (None, accuracy(lambda p, t: "high"), (TypeError, "computed 'accuracy' as a str")),
        (
            None,
            FunctionMetric("accuracy", torch.equal, True, per_sample=True),
            (TypeError, "of 4 samples as a bool"),
        ),
        (None, Doubled("accuracy"), (KeyError, "did not compute 'accuracy'; give main_metric")),
        (
            None,
            TorchMetric("accuracy", torchmetrics.classification.MulticlassAccuracy(2)),
            (RuntimeError, "unique values"),
        ),
    ],
)
def test_a_mistake_is_found_before_the_first_step(trainer, gives, metrics, error):
    module = Classifier(gives)
    training = trainer(metrics=metrics, hps={"step_scheduler_per_epoch": False})
    with pytest.raises(error[0], match=error[1]) as caught:
        training.fit(module, DATA, {"dev": DATA})
    assert module.steps == 0
    assert "in the trial evaluation before the first step (sanity_check=False skips it)" in (caught.value.__notes__)


def test_it_can_be_left_out(trainer):
    late = Classifier(lambda loss, good: None)
    with pytest.raises(TypeError):
        trainer(sanity_check=False, epochs=1).fit(late, DATA, {"dev": DATA})
    assert late.steps == 4


def needs(samples):
    """A metric that cannot be computed on few samples."""

    def compute(p, t):
        if len(p) < samples:
            raise ValueError("one class only")
        return 0.5

    return accuracy(compute)


def test_what_fails_on_few_samples_alone_is_a_warning(trainer, capsys):
    metrics = {"dev": needs(8), "test": [needs(4), FunctionMetric("f1", fail(ZeroDivisionError("0")), True)]}
    module = Classifier(lambda loss, good: {"loss": loss, "accuracy": good, "f1": good, "recall": good})
    training = trainer(metrics=metrics, epochs=1, quiet=True, enable_checkpointing=False)
    with pytest.raises(ZeroDivisionError):  # however many samples there are
        training.fit(module, DATA, {"dev": DATA, "test": DATA})
    assert module.steps == 0
    assert capsys.readouterr().out == ""
    trainer("b", metrics=needs(8), epochs=1, quiet=True, enable_checkpointing=False).fit(
        module, DATA, {"dev": DATA, "test": DATA}
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        *(
            f"warning: validation_step returns '{name}' for '{key}', and no metric uses it. The metrics are accuracy"
            for key in ("dev", "test")
            for name in ("f1", "recall")
        ),
    ] or lines == [
        line
        for key in ("dev", "test")
        for line in (
            f"warning: validation_step returns 'f1' for '{key}', and no metric uses it. The metrics are accuracy",
            f"warning: validation_step returns 'recall' for '{key}', and no metric uses it. The metrics are accuracy",
            f"warning: the metric 'accuracy' cannot be computed on one batch of '{key}' "
            "(ValueError: one class only), with 2 batches it can",
        )
    ]


class Remembers(Classifier):
    """Keeps this and that, as modules do."""

    def __init__(self):
        super().__init__()
        self.seen, self.count, self.sums = [], 0, torch.zeros(2)
        self.by_key = {"dev": []}
        self.curve = torchmetrics.MeanMetric()
        self.draws = torch.Generator().manual_seed(3)
        self.model.register_buffer("calls", torch.zeros(()))

    def validation_step(self, key, batch):
        self.seen.append(batch)
        self.by_key[key].append(1)
        self.by_key["other"] = 1
        self.count += 1
        self.sums += 1
        self.model.calls += 1
        self.curve.update(batch[0])
        self.made = torch.rand(1, generator=self.draws), torch.rand(1), random.random(), np.random.rand()
        return super().validation_step(key, batch)


class Told(Callback):
    """Keeps the state at the start of the training, and before the first step."""

    def __init__(self):
        super().__init__()
        self.called, self.looks = [], []

    def on_fit_start(self):
        self.looks.append(self._look())

    def on_epoch_start(self):
        self.looks.append(self._look())

    def on_evaluation_start(self):
        self.called.append("evaluation")

    def on_before_validation_step(self, batch):
        self.called.append("step")

    def _look(self):
        module = self.module
        attributes = {
            name: str(value)
            for name, value in vars(module).items()
            if name not in ("accelerator", "draws", "gives", "tracker", "_trainer", "_training_metrics")
        }
        numbers = {name: value.clone() for name, value in module.model.state_dict().items()}
        numbers |= {"curve": module.curve.mean_value.clone(), "draws": module.draws.get_state()}
        numbers |= {"torch": torch.rand(3), "python": random.random(), "numpy": np.random.rand()}
        return (attributes, vars(self.state).copy()), numbers


def test_everything_is_left_as_it_was(trainer):
    looks = []
    for checks in (True, False):
        set_seed(0)
        told = Told()
        trainer(f"m{checks}", callback=told, metrics=accuracy(), sanity_check=checks, max_steps=1).fit(
            Remembers(), DATA, {"dev": DATA}
        )
        assert told.called == ["evaluation", *["step"] * 4]
        looks.append(told.looks)
    for with_it, without in zip(*looks, strict=True):
        for one, other in zip(with_it[0], without[0], strict=True):
            assert one.keys() == other.keys()
            assert [name for name in one if one[name] != other[name]] == []
        torch.testing.assert_close(with_it[1], without[1], rtol=0, atol=0)


class Counted(Dataset):
    """Knows which samples were read, and opens something at the first."""

    def __init__(self):
        self.read, self.file = [], None

    def __len__(self):
        return 16

    def __getitem__(self, index):
        READ.append(index)
        self.read.append(index)
        self.file = object()
        return DATA[index]


READ = []


def test_only_one_batch_is_read_and_no_worker_started(trainer, monkeypatch):
    module, dev = Classifier(), Counted()
    module.get_validation_dataloader = lambda dataset: DataLoader(
        dataset, 4, num_workers=1, sampler=RandomSampler(dataset, generator=torch.Generator().manual_seed(1))
    )
    seen = []

    def on_epoch_start():
        seen.append((list(READ), list(dev.read), dev.file))
        raise KeyboardInterrupt

    callback = Callback()
    callback.on_epoch_start = on_epoch_start
    READ.clear()
    monkeypatch.setattr("torch.utils.data.dataloader._MultiProcessingDataLoaderIter", None)
    with pytest.raises(KeyboardInterrupt):
        trainer(callback=callback, metrics=accuracy()).fit(module, DATA, dev)
    [(read, left, file)] = seen
    assert len(read) == 4
    assert (left, file) == ([], None)


class Once(IterableDataset):
    """Can be read only once."""

    def __init__(self, samples):
        self.samples = iter(samples)

    def __iter__(self):
        return self.samples


class Again(IterableDataset):
    """Starts from its own place in an epoch that it counts."""

    def __init__(self):
        self.epoch = 0

    def __iter__(self):
        self.epoch += 1
        yield from DATA


def test_streams(trainer, capsys):
    training = trainer(metrics=accuracy(), epochs=1, quiet=True, enable_checkpointing=False)
    stream = Again()
    training.fit(Classifier(), DATA, {"dev": Once(list(DATA)), "test": stream})
    assert stream.epoch == 1
    assert [set(values) for values in training.state.additional_metrics.values()] == [{"valid_loss", "accuracy"}] * 2
    assert capsys.readouterr().out == (
        "warning: the validation data of 'dev' can be read only once: they are not part of the sanity check\n"
    )


def test_what_only_workers_can_read_is_read_by_one(trainer):
    class Opened(Counted):
        def __getitem__(self, index):
            if torch.utils.data.get_worker_info() is None:
                raise RuntimeError("it is opened in workers")
            return DATA[index]

    trainer(metrics=accuracy(), epochs=1, dataloader_num_workers=1).fit(Classifier(), DATA, Opened())


def test_an_evaluation_of_its_own_is_tried_too(trainer):
    steps = []

    class Steps(Classifier):
        def validation_step(self, key, batch):
            steps.append(key)
            return {"loss": torch.zeros(())} if key == "b" else super().validation_step(key, batch)

    with pytest.raises(KeyError, match="for 'b' returned nothing for the metric 'accuracy'"):
        trainer(metrics=accuracy()).evaluate(Steps(), {"a": DATA, "b": DATA})
    assert steps == ["a", "b"]


@pytest.mark.parametrize("start", [False, True])
def test_it_is_the_same_training_with_and_without(trainer, start):
    class Mean(MetricParallel):
        def compute(self, p, t):
            return {"mean": p.float().mean()}

    ends = []
    for checks in (True, False):
        set_seed(0)
        module = Remembers()
        module.gives = lambda loss, good: {"loss": loss, "mean": good, "accuracy": good}
        metrics = [Mean("mean"), TorchMetric("accuracy", torchmetrics.classification.MulticlassAccuracy(3))]
        training = trainer(
            f"{checks}{start}", metrics=metrics, sanity_check=checks, eval_when_start=start, dataloader_num_workers=1
        )
        training.fit(module, DATA, {"dev": DATA})
        ends.append((module.model.state_dict(), training.state.additional_metrics, module.count))
    torch.testing.assert_close(*ends, rtol=0, atol=0)

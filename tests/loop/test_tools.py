"""Cut epochs and evaluations, accumulation by epoch, clipping by value, profiles and the learning rate range test."""

import json
import math
import random
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType
from hypothesis import given, settings
from hypothesis import strategies as st
from launching import launch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from accmt import AcceleratorModule, Callback, ConfigError, ExtendedAcceleratorModule, Monitor, RuleError, Trainer
from accmt.data.loaders import TrainingData
from accmt.loop.gradient_backends import updates_of
from accmt.loop.progress import TrainingPosition

EVERY_STEP = {"checkpoint_every": "1 steps", "multiple_checkpoints": True, "disable_model_saving": True}


class Seen(AcceleratorModule):
    """Keeps the samples of each training and validation batch; each sample is its own number."""

    def __init__(self):
        self.model = nn.Linear(1, 1)
        self.trained, self.validated = [], []

    def training_step(self, batch):
        self.trained.append((self.state.epoch, *(int(value) for value in batch[0].flatten())))
        return self.model(batch[0].float() / 100).square().mean()

    def validation_step(self, key, batch):
        self.validated.append((key, *(int(value) for value in batch[0].flatten())))
        return self.model(batch[0].float() / 100).square().mean()


class Steps(Callback):
    """Keeps the epoch of each optimizer step, and stops the power after some of them."""

    def __init__(self, cut=None):
        super().__init__()
        self.epochs, self.cut = [], cut

    def on_after_zero_grad(self, optimizer):
        self.epochs.append(self.state.epoch)

    def on_before_training_step(self, batch):
        if len(self.epochs) == self.cut:
            raise KeyboardInterrupt


def numbers(count):
    return TensorDataset(torch.arange(count).reshape(-1, 1))


class Stream(IterableDataset):
    def __init__(self, count):
        self.count = count

    def __iter__(self):
        yield from ((torch.tensor([number]),) for number in range(self.count))


def weights(module):
    return [parameter.detach().clone() for parameter in module.model.parameters()]


def same(ones, others):
    return all(map(torch.equal, ones, others))


@pytest.mark.proves("Trainer(limit_train_batches)")
@pytest.mark.parametrize(("limit", "batches"), [(3, 3), (0.3, 3), (0.39, 3), (0.01, 1), (1.0, 10), (1, 1), (99, 10)])
def test_each_epoch_trains_on_some_batches(trainer, limit, batches):
    module = Seen()
    training = trainer(epochs=3, limit_train_batches=limit)
    training.fit(module, numbers(40))
    assert [epoch for epoch, *_ in module.trained] == [epoch for epoch in range(3) for _ in range(batches)]
    assert training.state.global_step == 3 * batches
    by_epoch = [
        sorted(sample for at, *batch in module.trained if at == epoch for sample in batch) for epoch in range(3)
    ]
    assert all(len(set(samples)) == 4 * batches for samples in by_epoch)
    assert (by_epoch[0] != by_epoch[1]) == (batches < 10)  # the cut is one of the order of each epoch


def test_cut_epochs_are_the_beginning_of_whole_ones(trainer):
    cut, whole = Seen(), Seen()
    trainer("cut", limit_train_batches=4).fit(cut, numbers(40))
    trainer("whole").fit(whole, numbers(40))
    assert cut.trained == whole.trained[:4] + whole.trained[10:14]


@pytest.mark.proves("Trainer(limit_train_batches)")
def test_schedules_and_rules_follow_cut_epochs(trainer):
    rates, steps = [], []

    class Kept(Callback):
        def on_before_optimizer_step(self, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

        def on_evaluation_end(self):
            steps.append(self.state.global_step)

    hps = {"scheduler": "LinearWithWarmup", "scheduler_kwargs": {"num_warmup_steps": 0}}
    training = trainer(lr=1.0, hps=hps, limit_train_batches=5, evaluate_every="50%", callback=Kept())
    training.fit(Seen(), numbers(40), numbers(4))
    assert rates == pytest.approx([1 - step / 10 for step in range(10)])
    assert steps == [5, 10]


@pytest.mark.parametrize("count", [40, None])
def test_a_stream_without_length_gets_epochs_of_one(trainer, count):
    module = Seen()
    training = trainer(limit_train_batches=3, evaluate_every="50%")
    training.fit(module, Stream(12 if count is None else count), numbers(4))
    assert module.trained == [(epoch, *range(at, at + 4)) for epoch in range(2) for at in (0, 4, 8)]
    assert len(module.validated) == 2


def test_a_stream_that_ends_before_its_limit_is_an_error(trainer):
    with pytest.raises(RuntimeError) as error:
        trainer(limit_train_batches=4).fit(Seen(), Stream(12))
    text = "the training data end early: limit_train_batches asks for 4 batches of this process in each epoch"
    assert str(error.value) == text


@pytest.mark.parametrize("name", ["limit_train_batches", "limit_val_batches"])
def test_a_fraction_of_a_stream_without_length_is_refused(trainer, name):
    datasets = {"limit_train_batches": (Stream(12), None), "limit_val_batches": (numbers(12), Stream(12))}[name]
    with pytest.raises(ConfigError) as error:
        trainer(**{name: 0.5}).fit(Seen(), *datasets)
    text = "is a fraction (0.5), and the data have no known length: give a number of batches"
    assert f"{name}: {text}" in str(error.value)


@pytest.mark.proves("Trainer(limit_val_batches)")
@pytest.mark.parametrize(
    ("limit", "batches", "kind"),
    [
        (2, 2, "stream"),
        (9, 5, "stream"),
        (2, 2, "map"),
        (0.5, 2, "map"),
        (0.01, 1, "map"),
        (9, 5, "map"),
        (1.0, 5, "map"),
    ],
)
def test_evaluations_read_the_first_batches(trainer, capsys, limit, batches, kind):
    module, data = Seen(), Stream(20) if kind == "stream" else numbers(20)
    training = trainer(epochs=1, limit_val_batches=limit, sanity_check=False)
    training.fit(module, numbers(4), {"dev": data})
    expected = [("dev", *range(at, at + 4)) for at in range(0, 4 * batches, 4)]
    assert module.validated == expected
    said = "evaluations on 'dev' use the first" in capsys.readouterr().out
    assert said == (batches < 5 or kind == "stream")
    module.validated.clear()
    training.evaluate(module, {"dev": data})
    assert module.validated[-batches:] == expected
    warned = "limit_val_batches: only the first batches of each dataset are evaluated" in capsys.readouterr().out
    assert warned == said


@pytest.mark.parametrize(
    "arguments",
    [
        {"limit_train_batches": 5, "limit_val_batches": 1},
        {"grad_accumulation_steps": {0: 3, 1: 1, 2: 4}},
        {"grad_accumulation_steps": {0: 3, 1: 1}, "limit_train_batches": 0.7},
        {"clip_grad_value": 1e-3},
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_resume_at_any_step_ends_bit_by_bit_alike(trainer, regression, data, arguments, workers, full):
    common = {"checkpoint_every": "1 steps", "quiet": True, "dataloader_num_workers": workers, **arguments}
    whole, steps = regression(0.2), Steps()
    initial = {name: value.clone() for name, value in whole.model.state_dict().items()}
    torch.manual_seed(0)
    trainer("whole", epochs=3, callback=steps, **common).fit(whole, data(26), data(8))
    for cut in range(1, len(steps.epochs), 1 if full and workers == 0 else 5):
        parts = regression(0.2)
        parts.model.load_state_dict(initial)
        torch.manual_seed(0)
        begun = Steps(cut)
        with pytest.raises(KeyboardInterrupt):
            trainer(f"at {cut}", epochs=3, callback=begun, **common).fit(parts, data(26), data(8))
        rest, resumed = Steps(), regression(0.2)
        trainer(f"at {cut}", epochs=3, callback=rest, **common).fit(resumed, data(26), data(8))
        assert begun.epochs + rest.epochs == steps.epochs
        assert same(weights(resumed), weights(whole))


@pytest.mark.proves("Trainer(grad_accumulation_steps)")
def test_accumulation_changes_with_the_epoch(trainer):
    steps, evaluations, rates = Steps(), [], []

    class Kept(Callback):
        def on_evaluation_end(self):
            evaluations.append((self.state.global_step, self.state.epoch))

        def on_before_optimizer_step(self, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    hps = {"scheduler": "LinearWithWarmup", "scheduler_kwargs": {"num_warmup_steps": 0}}
    training = trainer(
        epochs=4,
        lr=1.0,
        hps=hps,
        grad_accumulation_steps={0: 8, 2: 3},
        callback=[steps, Kept()],
        checkpoint_every="50%",
    )
    training.fit(Seen(), numbers(40), numbers(4))
    assert steps.epochs == [0] * 2 + [1] * 2 + [2] * 4 + [3] * 4
    assert [step for step, _ in evaluations] == [2, 4, 8, 12]
    assert rates == pytest.approx([1 - step / 12 for step in range(12)])
    assert training.state.num_checkpoints_made == 2


def test_a_table_equals_a_number_where_it_says_the_same(trainer, regression, data):
    modules = [regression() for _ in range(2)]
    modules[1].model.load_state_dict(modules[0].model.state_dict())
    for name, module, accumulation in (("number", modules[0], 3), ("table", modules[1], {0: 3, 7: 1})):
        torch.manual_seed(0)
        trainer(name, grad_accumulation_steps=accumulation).fit(module, data(40), data(4))
    assert same(*map(weights, modules))


@given(
    st.integers(1, 30),
    st.dictionaries(st.integers(1, 6), st.integers(1, 9)),
    st.integers(1, 9),
    st.integers(1, 8),
    st.none() | st.integers(1, 12),
)
@settings(deadline=None)
def test_steps_of_a_table_are_those_counted_one_by_one(count, later, first, epochs, limit):
    data = TrainingData(DataLoader(numbers(count), 2), {0: first, **later}, 7, limit)
    ends, step = [0], 0
    for epoch in range(epochs):
        windows = [window.size for window in data.windows(epoch) if list(window.batches)]
        assert sum(windows) == data.batches_per_epoch
        assert len(windows) == data.steps_in(epoch)
        step += len(windows)
        ends.append(step)
    assert [data.steps_before(epoch) for epoch in range(epochs + 1)] == ends
    for steps in range(1, step + 1):
        assert data.epochs_for(steps) == next(epoch for epoch, end in enumerate(ends) if end >= steps)
    assert TrainingPosition(data, epochs, None).total_steps == step


tables = st.dictionaries(st.integers(1, 4), st.integers(1, 5), max_size=3)
sides = st.tuples(st.integers(1, 5), tables, st.none() | st.integers(1, 9), st.sampled_from([1, 2, 4]))


@given(sides, sides, st.data())
@settings(deadline=None)
def test_a_position_resumes_with_another_table_limit_and_batch_size(before, after, draw):
    """No sample of an epoch is read twice, and the steps to come are counted right."""

    def made(side):
        first, later, limit, size = side
        data = TrainingData(DataLoader(numbers(17), size), {0: first, **later}, 7, limit)
        return data, TrainingPosition(data, 5, None)

    def train(data, position, most):
        while not position.is_finished and most:
            for window in data.windows(position.epoch, position.batch, offset=position.offset):
                read.append((position.epoch, *(int(value) for _, (batch,) in window.batches for value in batch)))
                position.advance(window)
                most -= 1
                if not most:
                    break
            if position.ended_epoch:
                position.next_epoch()

    read = []
    data, position = made(before)
    train(data, position, draw.draw(st.integers(1, position.total_steps - 1 or 1)))
    state = position.state_dict()
    data, position = made(after)
    position.check(state)
    position.load_state_dict(state)
    done, total = position.step, position.total_steps
    assert done == len(read)
    train(data, position, -1)
    assert position.step == total == len(read)
    for epoch in range(5):
        samples = [sample for at, *batch in read if at == epoch for sample in batch]
        assert len(samples) == len(set(samples))


def test_changed_limits_and_tables_are_said_at_a_resume(trainer, capsys):
    trainer(epochs=1, limit_train_batches=5, grad_accumulation_steps=2).fit(Seen(), numbers(40))
    capsys.readouterr()
    training = trainer(epochs=3, limit_train_batches=0.4, limit_val_batches=2, grad_accumulation_steps={0: 2, 2: 1})
    training.fit(Seen(), numbers(40))
    said = capsys.readouterr().out
    assert "limit_train_batches was 5 and is 0.4" in said
    assert "grad_accumulation_steps was 2 and is 2, 1 after 2 epochs" in said
    assert training.state.global_step == 3 + 2 + 4


def test_the_header_says_what_is_left_out(trainer, capsys):
    training = trainer(limit_train_batches=0.25, limit_val_batches=2, grad_accumulation_steps={0: 2, 1: 1})
    training.fit(Seen(), numbers(40), {"dev": numbers(40), "test": numbers(20), "all": numbers(4)})
    said = " ".join(capsys.readouterr().out.split())
    limited = "each epoch trains on 2 of 10 batches; evaluations on 'dev', 'test' use the first 2 batches "
    assert f"limited: {limited}metrics" in said
    assert "8 samples (4 a process, batches a step: 2, 1 after 1 epoch)" in said


def test_a_part_of_an_epoch_is_refused_where_epochs_differ(trainer):
    with pytest.raises(RuleError) as error:
        trainer(grad_accumulation_steps={0: 8, 1: 2}, evaluate_every="0.5 epochs").fit(Seen(), numbers(40), numbers(4))
    assert "a part of an epoch needs the number of its steps, which is not known here" in str(error.value)


def test_the_tracked_epoch_follows_a_table(trainer, monkeypatch):
    from accmt.loop import evaluation_step

    epochs = []
    original = evaluation_step._monitored

    def spied(run, progress, loss):
        values = original(run, progress, loss)
        epochs.append(values["epoch"])
        return values

    monkeypatch.setattr(evaluation_step, "_monitored", spied)
    trainer(grad_accumulation_steps={0: 5, 1: 2}, log_every=1, log_with="tensorboard", monitor=Monitor(epoch=True)).fit(
        Seen(), numbers(40)
    )
    assert epochs == pytest.approx([0.5, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0])


WRONG = {
    "grad_accumulation_steps": [{}, {1: 2}, {0: 0}, {0: 2, -1: 1}, {0: 2, 1.5: 1}, {0: True}, 0, "8"],
    "limit_train_batches": [0, -1, 0.0, 1.5, True, "half", math.nan],
    "limit_val_batches": [0, 2.0, False],
    "clip_grad_value": [0, -1.0, True, "1"],
    "profile": [{"steps": (1, 3)}, {"steps": (5, 4)}, {"steps": 3}, {"rows": 3}, {"with_stack": 1}, 5],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_values_of_a_wrong_kind_are_refused(trainer, name, value):
    with pytest.raises(ConfigError, match=rf"(?m)^  {name}: must be .*, or None"):
        trainer(**{name: value})


@pytest.mark.proves("Trainer(clip_grad_value)")
@pytest.mark.parametrize("clip_grad", [{}, {"clip_grad": None}])
def test_each_element_of_the_gradients_is_clipped(trainer, regression, data, clip_grad):
    class Gradients(Callback):
        kept = ()

        def on_before_optimizer_step(self, optimizer):
            self.kept = (*self.kept, torch.cat([p.grad.flatten() for p in self.module.model.parameters()]))

    class Steep(regression):
        def training_step(self, batch):
            return 1000 * super().training_step(batch)

    module, ours, plain = Steep(), Gradients(), Gradients()
    start = {name: value.clone() for name, value in module.model.state_dict().items()}
    trainer("ours", epochs=1, lr=1e-9, callback=ours, clip_grad_value=0.25, **clip_grad).fit(module, data(8))
    module.model.load_state_dict(start)
    torch.manual_seed(0)
    trainer("plain", epochs=1, lr=1e-9, callback=plain, clip_grad=None).fit(module, data(8))
    for clipped, raw in zip(ours.kept, plain.kept, strict=True):
        torch.testing.assert_close(clipped, raw.clamp(-0.25, 0.25), rtol=1e-3, atol=1e-4)
        assert raw.abs().max() > 10


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_norm_is_measured_before_the_values_are_clipped(trainer, regression, data, precision):
    seen = []

    class Norm(Callback):
        def on_after_optimizer_step(self, optimizer):
            gradients = torch.cat([p.grad.flatten() for p in self.module.model.parameters()])
            seen.append((float(gradients.abs().max()), self.trainer_norm()))

        def trainer_norm(self):
            return float(self.stepper.grad_norm)

    class Manual(regression, ExtendedAcceleratorModule):
        def training_step(self, batch):
            norm.stepper = self._stepper
            loss = 1000 * super().training_step(batch)
            self.backward(loss)
            self.step()
            return loss

    norm = Norm()
    arguments = {"clip_grad_value": 0.25, "monitor": {"grad_norm": True}, "mixed_precision": precision}
    trainer(epochs=1, lr=1e-9, callback=norm, **arguments).fit(Manual(), data(8))
    assert [most for most, _ in seen] == pytest.approx([0.25, 0.25])
    assert min(whole for _, whole in seen) > 10


def test_both_ways_of_clipping_are_refused(trainer):
    for norm in (2.0, 1.0):  # the default is refused as well, if it is given
        with pytest.raises(ConfigError, match=r"clip_grad_value: is given together with clip_grad: give one of them"):
            trainer(clip_grad_value=0.5, clip_grad=norm)


def test_sparse_gradients_cannot_be_clipped_by_value(trainer):
    module = Seen()
    module.model = nn.EmbeddingBag(10, 1, sparse=True)
    with pytest.raises(ConfigError, match="the gradients of EmbeddingBag are sparse and cannot be clipped"):
        trainer(clip_grad_value=0.5).fit(module, numbers(8))


def test_a_manual_module_takes_no_table(trainer):
    class Manual(Seen, ExtendedAcceleratorModule):
        pass

    with pytest.raises(ConfigError, match="an ExtendedAcceleratorModule accumulates gradients itself"):
        trainer(grad_accumulation_steps={0: 1, 1: 2}).fit(Manual(), numbers(8))


@pytest.mark.proves("Trainer(profile)")
@pytest.mark.parametrize(("profile", "steps"), [(True, (7, 11)), ({"steps": (3, 4), "record_shapes": True}, (3, 4))])
def test_some_steps_are_profiled_and_nothing_changes(trainer, regression, data, tmp_path, capsys, profile, steps):
    profiled, plain = regression(0.3), regression(0.3)
    plain.model.load_state_dict(profiled.model.state_dict())
    torch.manual_seed(0)
    trainer("profiled", profile=profile).fit(profiled, data(32), data(4))
    said = capsys.readouterr().out
    torch.manual_seed(0)
    trainer("plain").fit(plain, data(32), data(4))
    assert same(weights(profiled), weights(plain))
    assert "ProfilerStep*" in said
    assert "the trace of the profile is in" in said
    [path] = (tmp_path / "profiled" / "profile").iterdir()
    assert path.name == f"steps-{steps[0]}-{steps[1]}-rank-0.json"
    events = [event["name"] for event in json.loads(path.read_text())["traceEvents"]]
    assert events.count("Optimizer.step#SGD.step") == steps[1] - steps[0] + 1


def test_a_training_that_ends_before_its_profile_says_so(trainer, regression, data, tmp_path, capsys):
    trainer("short", epochs=1, profile={"steps": (20, 30)}).fit(regression(), data(32))
    said = " ".join(capsys.readouterr().out.split())
    assert "profile: steps 20 to 30 of this run were asked for, and it ended after 8" in said
    trainer("cut", epochs=1, profile={"steps": (7, 30)}).fit(regression(), data(32))
    assert [path.name for path in (tmp_path / "cut" / "profile").iterdir()] == ["steps-7-8-rank-0.json"]


def test_a_trace_that_cannot_be_written_is_a_warning(trainer, regression, data, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "profile").write_text("in the way")
    training = trainer(profile={"steps": (2, 3)})
    training.fit(regression(), data(32))
    assert training.state.finished
    assert "warning: the trace of the profile could not be written" in capsys.readouterr().out


@pytest.mark.proves("AcceleratorModule.summary", "AcceleratorModule.summary(depth)")
def test_a_summary_lists_the_parts_of_all_networks(trainer, data, capsys):
    class Tied(Seen):
        def __init__(self):
            super().__init__()
            encoder = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
            head = nn.Linear(4, 8)
            head.weight = encoder[0].weight
            self.model = nn.ModuleDict({"encoder": encoder, "head": head})
            self.model.register_parameter("scale", nn.Parameter(torch.ones(2, dtype=torch.float64)))
            self.teacher = nn.Linear(3, 1).requires_grad_(False)

        def training_step(self, batch):
            return self.model["encoder"](batch[0]).square().mean() + 0 * self.model["head"](batch[0]).sum()

    module = Tied()
    table = [
        "name           class       parameters  trainable  bytes",
        "model          ModuleDict  2           2          16",
        "model.encoder  Sequential  56          56         296",
        "model.head     Linear      8           8          32",
        "teacher        Linear      4           0          16",
        "together                   70          66         360",
    ]
    assert str(module.summary()).splitlines() == table
    assert [part.name for part in module.summary(depth=0).parts] == ["model", "teacher"]
    deep = module.summary(depth=2)
    assert [part.name for part in deep.parts][1:3] == ["model.encoder.0", "model.encoder.1"]
    assert deep.together == module.summary(0).together
    with pytest.raises(ValueError, match="depth is -1: it must be a whole number from 0"):
        module.summary(-1)
    trainer(epochs=1).fit(module, data(8))
    said = " ".join(capsys.readouterr().out.split())
    assert "parts: model: 2; encoder: 56; head: 8; teacher: 4" in said


def test_numbered_parts_are_named_by_their_class(trainer, data, capsys):
    class Numbered(AcceleratorModule):
        def __init__(self):
            self.model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))

        def training_step(self, batch):
            return self.model(batch[0]).square().mean()

    trainer(epochs=1).fit(Numbered(), data(8))
    assert "parts: 0 (Linear): 40; 2 (Linear): 9\n" in capsys.readouterr().out


class Fragile(AcceleratorModule):
    """Changes much while it trains: buffers, attributes, modes, and all random states."""

    def __init__(self):
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1))
        self.model[1].eval()
        self.calls, self.kept = 0, [1]

    def training_step(self, batch):
        self.calls += 1
        self.kept.append(random.random() + np.random.rand())
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        return nn.functional.mse_loss(self.model(batch[0]), batch[1])

    rates = ()
    optimizer = None

    def get_optimizer(self):
        self.optimizer = self.optimizer or torch.optim.AdamW(
            [{"params": self.model[0].parameters()}, {"params": self.model[3].parameters(), "lr": 0.2}], lr=0.1
        )
        return self.optimizer


@pytest.mark.proves(
    "Trainer.find_lr",
    "Trainer.find_lr(module)",
    "Trainer.find_lr(train_dataset)",
    "Trainer.find_lr(min_lr)",
    "Trainer.find_lr(max_lr)",
    "Trainer.find_lr(steps)",
)
def test_the_range_test_trains_at_growing_rates_and_leaves_no_trace(trainer, data, tmp_path):
    class Forbidden(Callback):
        def on_fit_start(self):
            raise AssertionError

        on_before_training_step = on_before_optimizer_step = lambda self, _: 1 / 0

    module, dataset = Fragile(), data(40)
    module.rates = seen = Counted()
    training = trainer(
        callback=Forbidden(), grad_accumulation_steps=2, log_with="tensorboard", stop_when="valid_loss < 1"
    )
    module.get_optimizer()
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    curve = training.find_lr(module, dataset, min_lr=1e-4, max_lr=1e-2, steps=9)
    assert curve.rates == pytest.approx([1e-4 * 10 ** (step / 4) for step in range(9)])
    assert seen.values[::2] == seen.values[1::2] == pytest.approx(list(curve.rates))  # two batches a step
    assert all(torch.equal(value, before[name]) for name, value in module.model.state_dict().items())
    assert (module.calls, module.kept) == (0, [1])
    assert [layer.training for layer in module.model] == [True, False, True, True]
    assert [group["lr"] for group in module.optimizer.param_groups] == [0.1, 0.2]
    assert not module.optimizer.state_dict()["state"]
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert states[2] == np.random.get_state()[1].tolist()
    assert all(parameter.grad is None for parameter in module.model.parameters())
    assert not list(tmp_path.iterdir())
    assert training.state.global_step == 0


class Counted:
    """Keeps its values although the attributes of modules are restored."""

    __module__ = "torch.tests"

    def __init__(self):
        self.values = []

    def append(self, value):
        self.values.append(value)


def test_a_training_after_the_range_test_is_the_one_without_it(trainer, regression, data):
    tested, plain = regression(0.2), regression(0.2)
    plain.model.load_state_dict(tested.model.state_dict())
    torch.manual_seed(0)
    training = trainer("tested")
    training.find_lr(tested, data(40), steps=15)
    training.fit(tested, data(40))
    torch.manual_seed(0)
    trainer("plain").fit(plain, data(40))
    assert same(weights(tested), weights(plain))


def test_a_scheduler_set_on_the_module_itself_is_left_there(trainer, regression, data):
    module = regression()
    module.get_scheduler = own = lambda optimizer, *_: torch.optim.lr_scheduler.StepLR(optimizer, 1)
    trainer().find_lr(module, data(8), steps=3)
    assert vars(module)["get_scheduler"] is own


def test_the_range_test_stops_where_the_loss_diverges_and_suggests_a_lower_rate(trainer, regression, data):
    curve = trainer(batch_size=16, clip_grad=None).find_lr(regression(), data(200), min_lr=1e-6, max_lr=1e3)
    assert curve.diverged
    assert len(curve.rates) == len(curve.losses) == len(curve.smoothed) < 100
    assert 1e-3 < curve.suggestion < curve.rates[-1] / 3


def test_a_loss_that_never_falls_suggests_nothing(trainer, regression, data):
    class Rising(regression):
        losses = iter(range(1, 1000))

        def training_step(self, batch):
            return 0 * super().training_step(batch) + next(self.losses)

    curve = trainer().find_lr(Rising(), data(8), steps=6)
    assert curve.suggestion is None
    assert repr(curve) == f"LearningRateCurve({len(curve.rates)} steps, suggestion None, diverged {curve.diverged})"


@pytest.mark.parametrize(
    "arguments", [{"min_lr": 0}, {"min_lr": 2}, {"steps": 1}, {"max_lr": math.inf}, {"steps": 2.5}]
)
def test_a_range_that_does_not_grow_is_refused(trainer, regression, data, arguments):
    with pytest.raises(ValueError, match="the rates must be positive, the second greater, and steps a whole number"):
        trainer().find_lr(regression(), data(8), **arguments)


def test_modules_and_data_that_cannot_be_restored_are_refused(trainer, regression, data):
    class Manual(regression, ExtendedAcceleratorModule):
        pass

    class Once(IterableDataset):
        def __iter__(self):
            return self

        def __next__(self):
            return torch.ones(4), torch.ones(1)

    with pytest.raises(ConfigError, match="Manual makes its optimizer steps itself"):
        trainer().find_lr(Manual(), data(8))
    with pytest.raises(ConfigError, match="is an iterator, and what is read from it would be missing"):
        trainer().find_lr(regression(), Once())
    with pytest.raises(ConfigError, match="the optimizer has no positive learning rate"):
        trainer(lr=0.0).find_lr(regression(), data(8))


def test_an_error_in_the_range_test_restores_the_module_too(trainer, regression, data):
    class Failing(regression):
        def training_step(self, batch):
            if self.state.global_step == 3:
                raise ZeroDivisionError
            return super().training_step(batch)

    module = Failing()
    before = weights(module)
    with pytest.raises(ZeroDivisionError):
        trainer().find_lr(module, data(40), min_lr=0.1)
    assert same(weights(module), before)


def test_the_curve_is_drawn_into_a_file(trainer, regression, data, tmp_path, monkeypatch):
    curve = trainer().find_lr(regression(), data(40), steps=20)
    figure = curve.plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    [axes] = figure.axes
    assert axes.get_xscale() == "log"
    assert list(axes.lines[0].get_xdata()) == list(curve.rates)
    assert list(axes.lines[0].get_ydata()) == list(curve.losses)
    assert figure._repr_png_().startswith(b"\x89PNG"), "a notebook shows it"
    monkeypatch.setitem(__import__("sys").modules, "accmt.tracking.plot", None)
    with pytest.raises(ImportError, match="a picture needs matplotlib: pip install matplotlib"):
        curve.plot()


PROCESSES = """
import json, os, sys
from pathlib import Path
import torch
from torch import nn
from torch.utils.data import TensorDataset
from accmt import AcceleratorModule, HyperParameters, Trainer, set_seed

class Module(AcceleratorModule):
    def __init__(self):
        set_seed(0)
        self.model = nn.Linear(1, 1)
        self.validated, self.trained = [], []

    def training_step(self, batch):
        self.trained.append(batch[0].flatten().tolist())
        return self.model(batch[0].float() / 100).square().mean()

    def validation_step(self, key, batch):
        self.validated.append(batch[0].flatten().tolist())
        return self.model(batch[0].float() / 100).square().mean()

folder, rank = Path(sys.argv[1]), os.environ["RANK"]
module, data = Module(), TensorDataset(torch.arange(40).reshape(-1, 1))
before = module.model.weight.item()
arguments = {"limit_train_batches": 3, "limit_val_batches": 3, "grad_accumulation_steps": {0: 3, 1: 1}}
trainer = Trainer(
    HyperParameters(2, None, 4, "SGD", {"lr": 0.1}), folder / "model", dataloader_num_workers=0, sanity_check=False,
    clip_grad_value=0.01, profile={"steps": (2, 3)}, destroy_after_training=False, **arguments
)
curve = trainer.find_lr(module, data, steps=5, max_lr=0.1)
assert module.model.weight.item() == before
module.trained.clear()
trainer.fit(module, data, data)
told = {"trained": module.trained, "validated": module.validated, "losses": curve.losses,
        "step": trainer.state.global_step, "weight": module.model.weight.item()}
(folder / f"{rank}.json").write_text(json.dumps(told))
"""


@pytest.mark.xdist_group("processes")
def test_two_processes(tmp_path):
    launch(PROCESSES, tmp_path, processes=2).check()
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert one["losses"] == two["losses"]
    assert len(one["losses"]) == 5
    assert one["weight"] == two["weight"]
    assert one["step"] == two["step"] == 1 + 3
    for epoch in range(2):
        samples = [
            sample for each in (one, two) for batch in each["trained"][3 * epoch : 3 * epoch + 3] for sample in batch
        ]
        assert len(set(samples)) == 24
    assert one["validated"] == 2 * [[0, 1, 2, 3], [8, 9, 10, 11]]
    assert two["validated"] == 2 * [[4, 5, 6, 7]]
    names = sorted(path.name for path in (tmp_path / "model" / "profile").iterdir())
    assert names == ["steps-2-3-rank-0.json", "steps-2-3-rank-1.json"]


def test_scaled_gradients_are_unscaled_before_their_values_are_clipped():
    """With a scaler, Accelerate clips, which unscales first; after the norm was measured, nothing unscales again."""
    called, parameter = [], nn.Parameter(torch.ones(2))
    accelerator = SimpleNamespace(
        scaler=object(),
        distributed_type=DistributedType.NO,
        no_sync=nullcontext,
        backward=None,
        clip_grad_value_=lambda parameters, most: called.append((parameters, most)),
        clip_grad_norm_=None,
    )
    optimizer = SimpleNamespace(step=None, zero_grad=None)
    updates_of(accelerator, nn.Linear(1, 1), optimizer).clip_value([parameter], 0.5)
    assert called == [([parameter], 0.5)]


@pytest.mark.parametrize("limit", [2, None])
def test_cut_data_that_keep_a_state_are_warned_about(trainer, capsys, limit):
    class Stateful(Stream):
        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    trainer(limit_train_batches=limit).fit(Seen(), Stateful(12))
    text = "limit_train_batches cuts data that keep a state: a resume after the first epoch may not be exact"
    assert (text in capsys.readouterr().out) == (limit is not None)


@pytest.mark.proves("Trainer.find_lr(loss_fn)")
def test_the_rates_of_a_plain_module(tmp_path):
    net, data = nn.Linear(3, 2), TensorDataset(torch.randn(12, 3), torch.arange(12) % 2)
    before = net.weight.clone()
    curve = Trainer({"batch_size": 4}, tmp_path, quiet=True).find_lr(net, data, loss_fn=nn.CrossEntropyLoss(), steps=20)
    assert len(curve.rates) == 20
    assert torch.equal(net.weight, before)
    with pytest.raises(ConfigError, match="loss_fn"):
        Trainer({"batch_size": 4}, tmp_path, quiet=True).find_lr(net, data)

"""Configuration is the script's, state is the checkpoint's: what a resume makes of settings that have changed."""

import json
from itertools import product

import pytest
import torch
from torch import nn
from torch.optim import SGD, lr_scheduler
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, TensorDataset

from accmt import AcceleratorModule, Callback, ConfigError, Monitor, Trainer, set_seed
from accmt.checkpoint.checkpoints import NoCheckpoint
from accmt.checkpoint.stateful import Mismatch
from accmt.hyperparameters.schedulers import SCHEDULERS

QUICK = {"dataloader_num_workers": 0, "disable_model_saving": True, "log_every": None, "quiet": True}


class PowerCut(BaseException):
    """Not an Exception: nothing in the library may catch it on the way."""


class Watch(Callback):
    """Keeps settings of the optimizer at each step, and cuts the power after some step."""

    def __init__(self, cut=None, names=("lr",), by_hand=None):
        super().__init__()
        self.cut, self.names, self.by_hand = cut, names, by_hand
        self.seen = []

    def on_before_optimizer_step(self, optimizer):
        if self.by_hand is not None and self.state.global_step in self.by_hand:
            name, factor = self.by_hand[self.state.global_step]
            for group in optimizer.param_groups:
                group[name] *= factor
        rows = [tuple(group.get(name) for name in self.names) for group in optimizer.param_groups]
        self.seen.append(rows[0] if len(rows) == 1 else rows)

    def on_before_training_step(self, batch):
        if self.state.global_step == self.cut:
            raise PowerCut


class Tiny(AcceleratorModule):
    """Learns a number; keeps the samples that it was trained on."""

    def __init__(self, groups=None, scheduler=None, loader=None):
        set_seed(0)
        self.model = nn.Linear(1, 1)
        self.groups, self.scheduler, self.loader = groups, scheduler, loader
        self.seen = []

    def training_step(self, batch):
        inputs = batch[0] if isinstance(batch, list) else batch
        self.seen += [int(sample) for sample in inputs.flatten().tolist()]
        return self.model(inputs.float().reshape(-1, 1) / 100).square().mean()

    def batch_size(self, batch):
        return batch.numel()  # asked for where the loader takes single samples

    def get_optimizer(self):
        if self.groups is None:
            return None
        return SGD([{"params": [p], **g} for p, g in zip(self.model.parameters(), self.groups, strict=True)], lr=1.0)

    def get_scheduler(self, optimizer, steps_per_epoch, epochs):
        return None if self.scheduler is None else self.scheduler(optimizer, steps_per_epoch * epochs)

    def get_train_dataloader(self, dataset):
        return None if self.loader is None else self.loader()


def numbers(count):
    return TensorDataset(torch.arange(float(count)).unsqueeze(1))


@pytest.fixture
def fit(tmp_path):
    """Settings -> a short training in a folder, and what was seen of it."""

    def run(path="model", *, cut=None, data=None, names=("lr",), by_hand=None, module=None, hps=None, **arguments):
        settings = {"epochs": 2, "batch_size": 4, "optimizer": "SGD", "optim_kwargs": {"lr": 0.1}, **(hps or {})}
        watch, module = Watch(cut, names, by_hand), module or Tiny()
        trainer = Trainer(settings, tmp_path / path, callback=watch, **{**QUICK, **arguments})
        trainer.register_model_saving("best_train_loss")
        if cut is None:
            trainer.fit(module, data or numbers(16))
        else:
            with pytest.raises(PowerCut):
                trainer.fit(module, data or numbers(16))
        watch.trainer, watch.module = trainer, module
        return watch

    return run


@pytest.fixture
def said(capsys):
    """The notes of what was printed since the last time, one line each, and the warnings; but for the one that what
    these tests keep of a training is in no checkpoint."""

    def lines():
        printed = capsys.readouterr().out.splitlines()
        told = [line for line in printed if line.startswith(("note: ", "warning: "))]
        return [line for line in told if "Tiny.seen, Watch.seen" not in line]

    return lines


LENGTHS = {
    "ConstantWithWarmup": {"num_warmup_steps": 3},
    "CosineAnnealingLR": {},
    "CosineAnnealingWarmRestarts": {"T_0": 3},
    "CosineWithHardRestartsWithWarmup": {"num_warmup_steps": 2, "num_cycles": 2},
    "CosineWithWarmup": {"warmup_ratio": 0.3},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 3},
    "ExponentialLR": {"gamma": 0.9},
    "InverseSQRT": {"num_warmup_steps": 2},
    "LinearLR": {"total_iters": 6},
    "LinearWithWarmup": {"num_warmup_steps": 2},
    "OneCycleLR": {"max_lr": 0.1},
    "PolynomialDecayWithWarmup": {"num_warmup_steps": 2},
    "StepLR": {"step_size": 2},
    "Constant": {},
}
GIVEN = {
    "CosineAnnealingLR": {"T_max": 11},
    "LinearWithWarmup": {"num_warmup_steps": 2, "num_training_steps": 20},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": 17},
    "OneCycleLR ": {"max_lr": 0.1, "epochs": 4, "steps_per_epoch": 5},
}


def test_each_scheduler_is_tried():
    assert {*LENGTHS, "ReduceLROnPlateau"} == set(SCHEDULERS.entries)  # which follows a metric: see test_plateau.py


def every_day(*choices):
    """All combinations, of which every second one is for --full alone, such that each choice is among the others."""
    return [
        pytest.param(*pair, marks=[pytest.mark.full] * (sum(places) % 2))
        for pair, places in zip(product(*choices), product(*(range(len(each)) for each in choices)), strict=True)
    ]


@pytest.mark.parametrize(
    ("name", "per_epoch"), every_day([*LENGTHS, *(f"{name} given" for name in GIVEN)], [False, True])
)
def test_every_schedule_is_that_of_an_undisturbed_training(fit, name, per_epoch):
    """More epochs and another learning rate, in the middle of an epoch; then no change."""
    name, is_given = name.removesuffix(" given"), name.endswith(" given")
    arguments = (GIVEN if is_given else LENGTHS)[name]
    given = {"scheduler": name.strip(), "scheduler_kwargs": arguments, "step_scheduler_per_epoch": per_epoch}
    before = {**given, "epochs": 3, "optim_kwargs": {"lr": 0.1, "momentum": 0.9}}
    after = {**given, "epochs": 4, "optim_kwargs": {"lr": 0.02, "momentum": 0.9}}
    shape = {"data": numbers(8), "names": ("lr", "momentum"), "checkpoint_every": "1 step"}
    whole = fit("whole", hps=after, **shape).seen
    fit(cut=3, hps=before, **shape)
    assert fit(hps=after, cut=5, **shape).seen == whole[3:5]
    assert fit(hps=after, **shape).seen == whole[5:]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"scheduler": "StepLR", "scheduler_kwargs": {"step_size": 2}}, {"scheduler": "ExponentialLR"}),
        ({}, {"scheduler": "LinearWithWarmup", "scheduler_kwargs": {"num_warmup_steps": 0}}),
        ({"scheduler": "OneCycleLR", "scheduler_kwargs": {"max_lr": 0.2}}, {}),
        ({"scheduler": "LinearWithWarmup", "scheduler_kwargs": {"num_warmup_steps": 0}}, {"scheduler": "StepLR"}),
    ],
)
def test_another_scheduler_takes_effect(fit, before, after):
    after = dict(after)
    if after.get("scheduler") in ("StepLR", "ExponentialLR"):
        after["scheduler_kwargs"] = {"gamma": 0.5, **({"step_size": 3} if after["scheduler"] == "StepLR" else {})}
    for changed in (after, {**after, "step_scheduler_per_epoch": True}):
        whole = fit("whole", resume=False, hps=changed)
        fit(cut=5, hps=before, checkpoint_every="1 step", resume=False)
        again = fit(hps=changed, checkpoint_every="1 step")
        assert again.seen == whole.seen[5:]
        assert torch.isfinite(again.module.model.weight).all()


OWN = {
    "a constant": (
        lambda optimizer, total: lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step),
        lambda optimizer, total: lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step),
    ),
    "the length": (lambda optimizer, total: lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total),) * 2,
    "a part": (
        lambda optimizer, total: lr_scheduler.SequentialLR(
            optimizer,
            [lr_scheduler.ConstantLR(optimizer, 0.1, 3), lr_scheduler.ExponentialLR(optimizer, 0.9)],
            milestones=[3],
        ),
        lambda optimizer, total: lr_scheduler.SequentialLR(
            optimizer,
            [lr_scheduler.ConstantLR(optimizer, 0.2, 3), lr_scheduler.ExponentialLR(optimizer, 0.8)],
            milestones=[3],
        ),
    ),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step()`")
@pytest.mark.parametrize("name", OWN)
def test_a_scheduler_of_the_user_follows_its_settings(fit, name):
    first, second = OWN[name]
    hps = {"epochs": 3}
    whole = fit("whole", module=Tiny(scheduler=second), hps=hps)
    fit(cut=5, module=Tiny(scheduler=first), checkpoint_every="1 step")
    assert fit(module=Tiny(scheduler=second), checkpoint_every="1 step", hps=hps).seen == whole.seen[5:]


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step()`")
@pytest.mark.parametrize("own", [None, *OWN])
def test_what_is_done_by_hand_is_state(fit, own):
    """Without any change in the configuration, what a callback made of the rate is continued exactly."""
    hps = {"scheduler": "ExponentialLR", "scheduler_kwargs": {"gamma": 0.9}} if own is None else {}
    shape = {"hps": hps, "by_hand": {1: ("lr", 0.5), 2: ("weight_decay", 3.0)}, "checkpoint_every": "1 step"}
    names = ("lr", "weight_decay", "momentum")

    def module():
        return Tiny([{"lr": 0.1, "weight_decay": 0.01}, {"lr": 0.2}], OWN[own][0] if own else None)

    whole = fit("whole", module=module(), names=names, **shape)
    fit(cut=5, module=module(), names=names, **shape)
    again = fit(module=module(), names=names, **shape)
    assert again.seen == whole.seen[5:]
    assert torch.equal(again.module.model.weight, whole.module.model.weight)


def test_settings_of_groups_take_effect_and_are_said(fit, said):
    shape = {"names": ("lr", "weight_decay", "momentum"), "by_hand": {1: ("lr", 0.5)}, "checkpoint_every": "1 step"}
    before = [{"lr": 0.1, "weight_decay": 0.01}, {"lr": 0.2, "momentum": 0.9}]
    after = [{"lr": 0.1, "weight_decay": 0.02}, {"lr": 0.4, "momentum": 0.9, "weight_decay": 0.02}]
    fit(cut=5, module=Tiny(before), **shape)
    said()
    again = fit(module=Tiny(after), **{**shape, "quiet": False})
    assert again.seen[0] == [(0.05, 0.02, 0), (0.4, 0.02, 0.9)]
    assert said()[1:] == [
        "note: lr of parameter group 1 was 0.2 and is 0.4",
        "note: weight_decay of parameter group 0 was 0.01 and is 0.02",
        "note: weight_decay of parameter group 1 was 0 and is 0.02",
    ]


def test_every_change_is_said_once_and_an_unchanged_training_says_nothing(fit, said):
    fit(cut=5, hps={"optimizer": "AdamW", "optim_kwargs": {"lr": 0.003}}, checkpoint_every="1 step")
    changed = {"optimizer": "AdamW", "optim_kwargs": {"lr": 0.1, "betas": (0.8, 0.99)}, "epochs": 3}
    arguments = {"checkpoint_every": "2 steps", "clip_grad": None, "stop_when": ["train_loss < 0"], "quiet": False}
    watch = fit(hps=changed, names=("lr", "betas"), **arguments)
    assert watch.seen[0] == (0.1, (0.8, 0.99))
    assert sorted(said()) == [
        "note: betas was [0.9, 0.999] and is [0.8, 0.99]",
        "note: checkpoint_every was 1 step and is 2 steps",
        "note: clip_grad was 1.0 and is None",
        "note: continuing from checkpoint-0005-step-5",
        "note: epochs was 2 and is 3",
        "note: lr was 0.003 and is 0.1",
        "note: stop_when was [] and is ['train_loss < 0']",
    ]
    fit(hps=changed, **arguments)
    lines = said()
    assert len(lines) == 2
    assert lines[1].startswith("warning: nothing was trained")


@pytest.mark.parametrize("as_earlier", [False, True], ids=["", "from an earlier checkpoint"])
def test_only_fields_of_the_monitor_that_differ_are_changes(fit, tmp_path, said, as_earlier):
    """None and {} are a monitor with its defaults; earlier checkpoints recorded what was given."""

    def as_given(trainer):
        settings = trainer["configuration"]["settings"]
        trainer["configuration"]["settings"] = {k: v for k, v in settings.items() if not k.startswith("monitor.")}

    fit(cut=2, checkpoint_every="1 step", monitor=None, quiet=False)
    if as_earlier:
        [folder] = (tmp_path / "model" / "checkpoints").iterdir()
        _rewrite(folder, as_given)
    said()
    fit(cut=3, checkpoint_every="1 step", monitor=Monitor(), quiet=False)
    assert said() == ["note: continuing from checkpoint-0002-step-2"]
    fit(cut=4, checkpoint_every="1 step", monitor=Monitor(grad_norm=True), quiet=False)
    assert said() == ["note: continuing from checkpoint-0003-step-3", "note: monitor.grad_norm was False and is True"]
    fit(checkpoint_every="1 step", monitor={}, quiet=False)
    assert said() == ["note: continuing from checkpoint-0004-step-4", "note: monitor.grad_norm was True and is False"]


@pytest.mark.parametrize("key", ["configuration", "settled"])
def test_a_checkpoint_without_a_record_is_refused(fit, tmp_path, key):
    fit(cut=5, checkpoint_every="1 step")
    [folder] = (tmp_path / "model" / "checkpoints").iterdir()
    _rewrite(folder, lambda trainer: trainer.pop(key))
    with pytest.raises(NoCheckpoint, match=f"{key} is missing"):
        fit()


def _rewrite(folder, *changes):
    """Change a checkpoint, manifest and all."""
    from hashlib import sha256

    trainer = json.loads((folder / "trainer.json").read_text())
    for change in changes:
        change(trainer)
    content = json.dumps(trainer).encode()
    (folder / "trainer.json").write_bytes(content)
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    manifest["files"]["trainer.json"] |= {"size": len(content), "sha256": sha256(content).hexdigest()}
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))


def test_a_schedule_that_has_ended_is_an_error(fit):
    hps = {"scheduler": "OneCycleLR", "scheduler_kwargs": {"max_lr": 0.1, "total_steps": 8}}
    fit(cut=5, hps=hps, checkpoint_every="1 step")
    with pytest.raises(ConfigError, match="the schedule ends before step 5, from which the training would resume"):
        fit(hps={**hps, "scheduler_kwargs": {"max_lr": 0.1, "total_steps": 3}})


class Stream(IterableDataset):
    def __init__(self, count):
        self.count = count

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return iter(range(first, self.count, step))


class Sized(Stream):
    def __len__(self):
        return self.count


class Pairs(BatchSampler):
    """Batches that somebody makes in a way of their own."""

    def __init__(self, count, size):
        super().__init__(SequentialSampler(range(count)), size, False)

    def __iter__(self):
        yield from reversed(list(super().__iter__()))


BATCHES = [(2, 2, 4, 1), (2, 1, 16, 1), (4, 1, 3, 2), (5, 1, 2, 3)]


@pytest.mark.parametrize(
    ("batches", "kind"), every_day(BATCHES, ["shuffled", "in order", "stream", "sized stream", "no batches"])
)
def test_other_batches_go_on_at_the_same_sample(fit, kind, batches):
    """No sample twice, none left out, in either epoch; and what is counted says so."""
    size, many, size_after, many_after = batches
    data = {"stream": Stream, "sized stream": Sized}.get(kind, numbers)(33)
    loader = (lambda: DataLoader(torch.arange(33), batch_size=None, shuffle=True)) if kind == "no batches" else None
    shape = {"data": data, "checkpoint_every": "1 step", "shuffle_train": kind != "in order"}
    first = fit(cut=3, module=Tiny(loader=loader), hps={"batch_size": size}, grad_accumulation_steps=many, **shape)
    again = fit(module=Tiny(loader=loader), hps={"batch_size": size_after}, grad_accumulation_steps=many_after, **shape)
    done = (1 if kind == "no batches" else size) * many * 3
    assert sorted(first.module.seen[:done] + again.module.seen[: 33 - done]) == list(range(33))
    assert sorted(again.module.seen[33 - done :]) == list(range(33))
    decisions = again.trainer.decisions
    assert [decision.progress.epoch for decision in decisions] == [1, 2]
    if "stream" not in kind:  # whose length nobody knows: its last batch counts as a whole one
        assert [decision.progress.samples for decision in decisions] == [33, 66]


@pytest.mark.parametrize(("limit", "steps"), [({}, 3 + 3 + 5), ({"max_steps": 9}, 9)])
def test_lengths_follow(fit, limit, steps):
    """3 steps of 4 samples, the other 20 of the epoch in steps of 7, and an epoch of 32 in steps of 7."""
    hps = {"scheduler": "LinearWithWarmup", "scheduler_kwargs": {"num_warmup_steps": 0}, **limit}
    shape = {"data": numbers(32), "checkpoint_every": "1 step"}
    fit(cut=3, hps=hps, **shape)
    fit(cut=5, hps={**hps, "batch_size": 7}, **shape)
    again = fit(hps={**hps, "batch_size": 7}, **shape)
    assert again.trainer.state.global_step == steps
    assert again.seen == [(pytest.approx(0.1 * (1 - step / steps)),) for step in range(5, steps)]


def test_a_batch_sampler_of_the_user_keeps_its_batches(fit):
    def loader(size):
        return lambda: DataLoader(numbers(16), batch_sampler=Pairs(16, size))

    first = fit(cut=3, module=Tiny(loader=loader(3)), checkpoint_every="1 step")
    with pytest.raises(
        Mismatch, match=r"a batch sampler makes the batches(.|\n)*continue from a checkpoint at the end"
    ):
        fit(module=Tiny(loader=loader(2)))
    again = fit(module=Tiny(loader=loader(3)), grad_accumulation_steps=2, hps={"epochs": 1})
    assert sorted(first.module.seen[: 16 - len(again.module.seen)] + again.module.seen) == list(range(16))
    fit(module=Tiny(loader=loader(2)), hps={"epochs": 3})  # at the end of an epoch anything goes


@pytest.mark.filterwarnings("ignore:.*IterableDataset")
def test_a_stream_of_several_workers_is_refused_within_an_epoch(fit):
    def loader(size, workers):
        return lambda: DataLoader(Stream(32), size, num_workers=workers)

    fit(cut=3, module=Tiny(loader=loader(2, 2)), checkpoint_every="1 step")
    for size, workers in ((4, 2), (2, 0)):
        with pytest.raises(Mismatch, match="several workers read the stream"):
            fit(module=Tiny(loader=loader(size, workers)))
    again = fit(module=Tiny(loader=loader(2, 2)), hps={"epochs": 1})
    assert len(again.module.seen) == 26


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_of_one_worker_goes_on(fit, workers):
    def loader(size, workers):
        return lambda: DataLoader(Stream(32), size, num_workers=workers)

    fit(cut=4, module=Tiny(loader=loader(2, 1)), checkpoint_every="1 step")
    again = fit(module=Tiny(loader=loader(4, workers)), hps={"epochs": 1})
    assert again.module.seen == list(range(8, 32))


def test_another_order_is_refused_within_an_epoch(fit):
    fit(cut=2, checkpoint_every="1 step")
    for changed in ({"shuffle_train": False}, {"sampler": list(range(16))}):
        with pytest.raises(Mismatch, match="the samplers of the training data are different now"):
            fit(**changed)
    assert len(fit(hps={"epochs": 1}).module.seen) == 8
    assert fit(shuffle_train=False).module.seen == list(range(16))


def test_fewer_epochs_and_a_finished_training_are_said(fit, said):
    fit()
    for hps, text in (
        ({}, "the training is already finished, after 2 epochs and 8 steps. Give more epochs to continue"),
        ({"epochs": 1}, "epochs is 1, and 2 are done: the training is already finished"),
        ({"max_steps": 5}, "max_steps is 5, and 8 are done: the training is already finished"),
    ):
        assert fit(hps=hps).seen == []
        [line] = said()
        assert line.startswith("warning: nothing was trained: ")
        assert text in line
        assert line.endswith("or resume=False to start from scratch")
    assert len(fit(hps={"max_steps": 9}).seen) == 1
    assert said() == []


def test_a_stop_that_holds_at_once_is_said_with_its_reason(fit, said):
    fit()
    assert fit(stop_when="step >= 4", hps={"epochs": 4}).seen == []
    assert said()[-1] == (
        "warning: nothing was trained: the training is stopped at step 8: the condition 'step >= 4' holds. "
        "To continue, change the patience or the condition that stops it, or give resume=False to start from scratch"
    )

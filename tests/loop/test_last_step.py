"""`checkpoint_on_exception`: the last complete step is what a training continues from, bit by bit."""

import warnings

import pytest
import torch
from torch import nn

from accmt import AcceleratorModule, Callback, Trainer
from accmt.checkpoint.checkpoints import Checkpoints
from accmt.tracking.journal import read


class Noisy(AcceleratorModule):
    """Dropout, running statistics, and an evaluation of them."""

    def __init__(self):
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.fails = None

    def training_step(self, batch):
        loss = nn.functional.mse_loss(self.model(batch[0]), batch[1])
        self.fail("training_step")
        return loss

    def validation_step(self, key, batch):
        loss = nn.functional.mse_loss(self.model(batch[0]), batch[1])
        self.fail("validation_step")
        return {"loss": loss}

    def fail(self, where):
        if self.fails is not None and self.fails[0] == where and self.state.global_step == self.fails[1]:
            raise self.fails[2]("as planned")


class Failing(Callback):
    def on_epoch_end(self):
        self.module.fail("on_epoch_end")

    def on_evaluation_end(self):
        self.module.fail("on_evaluation_end")

    def on_before_optimizer_step(self, optimizer):
        self.module.fail("on_before_optimizer_step")

    def on_before_zero_grad(self, optimizer):
        self.module.fail("on_before_zero_grad")


ADAM = {"type": "AdamW", "lr": 0.01}
SCHEDULER = {"type": "CosineAnnealingLR"}


@pytest.fixture
def fit(tmp_path, data):
    def fit(path, fails=None, **arguments):
        torch.manual_seed(0)
        hps = {"epochs": 3, "batch_size": 4, "optimizer": ADAM, "scheduler": SCHEDULER}
        hps["step_scheduler_per_epoch"] = arguments.pop("per_epoch", False)
        given = {
            "dataloader_num_workers": 0,
            "quiet": True,
            "checkpoint_every": "3 epochs",
            "log_every": 2,
            "checkpoint_on_exception": True,
            **arguments,
        }
        module = Noisy()
        module.fails = fails
        trainer = Trainer(hps, tmp_path / path, callback=Failing(), **given)
        if fails is None:
            trainer.fit(module, data(20), data(6))
        else:
            with pytest.raises(fails[2], match="as planned"):
                trainer.fit(module, data(20), data(6))
        return trainer, module

    return fit


def course(trainer):
    return [
        {**line, "elapsed": 0}
        for name in ("history", "decisions")
        for line in read(trainer.model_path / f"{name}.jsonl")
    ]


@pytest.mark.parametrize(
    ("fails", "step", "arguments"),
    [
        (("training_step", 7, ValueError), 7, {}),
        (("training_step", 7, KeyboardInterrupt), 7, {"grad_accumulation_steps": 2}),
        (("training_step", 5, RuntimeError), 5, {"checkpoint_async": True}),
        (("training_step", 10, ValueError), 10, {"per_epoch": True}),
        (("validation_step", 10, ValueError), 10, {}),
        (("validation_step", 5, KeyboardInterrupt), 5, {"per_epoch": True}),
        (("on_evaluation_end", 10, ValueError), 10, {"per_epoch": True}),
        (("on_epoch_end", 10, ValueError), 10, {"per_epoch": True}),
        (("validation_step", 6, ValueError), 6, {"evaluate_every": "3 steps"}),
        (("on_before_optimizer_step", 8, ValueError), 8, {"set_to_none": False}),
    ],
)
def test_it_is_continued_as_if_nothing_had_happened(fit, tmp_path, fails, step, arguments):
    if "grad_accumulation_steps" in arguments:
        fails, step = (fails[0], 4, fails[2]), 4
    whole, theirs = fit("whole", **arguments)
    first, _ = fit("parts", fails, **arguments)
    assert [checkpoint.step for checkpoint in Checkpoints(first.model_path).all()] == [step]
    assert first.state.global_step == step
    parts, mine = fit("parts", **arguments)
    assert course(parts) == course(whole)
    assert parts.state.global_step == whole.state.global_step
    for a, b in zip(mine.model.state_dict().values(), theirs.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_where_the_weights_had_begun_to_change_none_is_made(fit, capsys):
    trainer, _ = fit("model", ("on_before_zero_grad", 4, ValueError))
    assert Checkpoints(trainer.model_path).all() == []
    assert "no checkpoint was made of the last complete step: the step after step 4 had begun to change" in (
        capsys.readouterr().out
    )


def test_before_the_first_step_there_is_none(fit):
    trainer, _ = fit("model", ("training_step", 0, ValueError))
    assert Checkpoints(trainer.model_path).all() == []


def test_none_where_it_is_not_asked_for(fit):
    trainer, _ = fit("model", ("training_step", 4, ValueError), checkpoint_on_exception=False)
    assert Checkpoints(trainer.model_path).all() == []


def test_where_it_continues_is_said(fit, capsys):
    fit("model", ("training_step", 4, ValueError), quiet=False)
    assert "\nfailed at step 4; run again to continue from step 4\n" in capsys.readouterr().out


def test_it_needs_checkpoints(tmp_path):
    with pytest.raises(ValueError, match="checkpoint_on_exception: checkpoints are disabled"):
        Trainer({"epochs": 1}, tmp_path / "m", checkpoint_every=None, checkpoint_on_exception=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Trainer({"epochs": 1}, tmp_path / "m", checkpoint_on_exception=True)

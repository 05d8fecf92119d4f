"""An ExtendedAcceleratorModule trains by itself, with the trainer around it."""

import pytest
import torch
from torch import nn

from accmt import Callback, ConfigError, ExtendedAcceleratorModule


class Manual(ExtendedAcceleratorModule):
    """The linear model of the other tests, by hand; it updates every `every` batches."""

    def __init__(self, every=1):
        self.model = nn.Linear(4, 1)
        self.every = every

    def training_step(self, batch):
        loss = nn.functional.mse_loss(self.model(batch[0]), batch[1])
        self.backward(loss / self.every)
        if (self.state.train_step + 1) % self.every == 0 or self.state.is_last_training_batch:
            self.step()
        return loss.detach()

    def validation_step(self, key, batch):
        return nn.functional.mse_loss(self.model(batch[0]), batch[1])


def by_hand(module, dataset, every, *, clip):
    optimizer = torch.optim.SGD(module.model.parameters(), lr=0.05)
    batches = [tuple(torch.stack(column) for column in zip(*rows, strict=True)) for rows in in_fours(dataset)]
    for number, batch in enumerate(batches, 1):
        (nn.functional.mse_loss(module.model(batch[0]), batch[1]) / every).backward()
        if number % every == 0 or number == len(batches):
            nn.utils.clip_grad_norm_(module.model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()


def in_fours(dataset):
    return [[dataset[i] for i in range(start, min(start + 4, len(dataset)))] for start in range(0, len(dataset), 4)]


@pytest.mark.proves("ExtendedAcceleratorModule")
@pytest.mark.parametrize("every", [1, 2])
def test_equals_a_loop_by_hand(trainer, data, every):
    ours, theirs = Manual(every), Manual(every)
    theirs.model.load_state_dict(ours.model.state_dict())
    training = trainer(epochs=1, shuffle_train=False, clip_grad=0.5)
    training.fit(ours, data(18))
    by_hand(theirs, data(18), every, clip=0.5)
    for mine, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert training.state.global_step == 5


class Counted(Callback):
    def __init__(self):
        super().__init__()
        self.called = []

    def on_before_backward(self, loss):
        self.called.append("backward")

    def on_before_optimizer_step(self, optimizer):
        self.called.append("optimizer")

    def on_before_scheduler_step(self, scheduler):
        self.called.append("scheduler")

    def on_before_zero_grad(self, optimizer):
        self.called.append("zero")


def test_hooks_are_called_where_the_module_acts(trainer, data):
    counted = Counted()
    scheduled = {"scheduler": "Constant"}
    trainer(epochs=1, callback=counted, hps=scheduled).fit(Manual(every=2), data(12))
    second = ["zero", "backward", "optimizer", "scheduler"]
    assert counted.called == ["backward", "backward", "optimizer", "scheduler", *second]


@pytest.mark.parametrize("per_epoch", [False, True])
def test_the_scheduler_steps_once(trainer, data, per_epoch):
    rates = []

    class Recording(Manual):
        def training_step(self, batch):
            rates.append(self._stepper.learning_rate)
            return super().training_step(batch)

    scheduled = {"scheduler": "StepLR", "scheduler_kwargs": {"step_size": 1, "gamma": 0.5}}
    trainer(epochs=2, hps={**scheduled, "step_scheduler_per_epoch": per_epoch}).fit(Recording(), data(8))
    assert rates == pytest.approx([0.05, 0.05, 0.025, 0.025] if per_epoch else [0.05, 0.025, 0.0125, 0.00625])


def test_zero_grad_resets_to_none_or_zero(trainer, data):
    seen = []

    class Zeroing(Manual):
        def training_step(self, batch):
            loss = super().training_step(batch)
            for set_to_none in (False, True):
                self.zero_grad(set_to_none=set_to_none)
                gradient = next(self.model.parameters()).grad
                seen.append(None if gradient is None else gradient.abs().sum().item())
            return loss

    trainer(epochs=1).fit(Zeroing(), data(4))
    assert seen == [0.0, None]


def test_what_was_not_begun_is_tried_again(trainer, data):
    class Failing(Manual):
        calls = 0

        def training_step(self, batch):
            Failing.calls += 1
            if Failing.calls == 2:
                raise torch.OutOfMemoryError("out of memory")
            return super().training_step(batch)

    training = trainer(epochs=1)
    training.fit(Failing(), data(8))
    assert (Failing.calls, training.state.global_step) == (3, 2)


def test_what_has_touched_gradients_is_not_tried_again(trainer, data):
    class Failing(Manual):
        calls = 0

        def training_step(self, batch):
            Failing.calls += 1
            super().training_step(batch)
            raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        trainer(epochs=1).fit(Failing(), data(8))
    assert Failing.calls == 1


@pytest.mark.proves("ExtendedAcceleratorModule")
def test_accumulation_is_the_module_s_own(trainer, data):
    with pytest.raises(ConfigError) as caught:
        trainer(grad_accumulation_steps=2).fit(Manual(), data(8))
    assert str(caught.value) == (
        "1 mistake in fit(...):\n"
        "  grad_accumulation_steps: an ExtendedAcceleratorModule accumulates gradients "
        "itself: leave it out, and step where self.state says so"
    )


def test_resume_is_exact(trainer, data):
    whole = Manual()
    start = {name: value.clone() for name, value in whole.model.state_dict().items()}
    trainer("whole", epochs=2).fit(whole, data(16), data(4))

    class Cut(Manual):
        def training_step(self, batch):
            if self.state.global_step == 5:
                raise KeyboardInterrupt
            return super().training_step(batch)

    cut = Cut()
    cut.model.load_state_dict(start)
    with pytest.raises(KeyboardInterrupt):
        trainer("cut", epochs=2, checkpoint_every="2 steps").fit(cut, data(16), data(4))
    resumed = Manual()
    trainer("cut", epochs=2, checkpoint_every="2 steps").fit(resumed, data(16), data(4))
    for mine, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, other)

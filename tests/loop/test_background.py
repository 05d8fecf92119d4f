"""Checkpoints that are written while the training goes on."""

import threading

import pytest
import torch

import accmt
from accmt import Callback
from accmt.checkpoint import publish
from accmt.checkpoint.checkpoints import Checkpoints
from accmt.distributed.collective import Failed
from accmt.hyperparameters import ConfigError


class Follows(Callback):
    """Keeps at which steps checkpoints were known to be made."""

    def __init__(self):
        self.told = []

    def on_save_checkpoint(self):
        self.told.append(self.state.global_step)


def slowly(monkeypatch, *events):
    """Let the n-th writing wait for the n-th event."""
    waiting = list(events)
    real = publish.publish

    def wait(*arguments):
        event = waiting.pop(0) if waiting else None
        assert event is None or event.wait(300)
        real(*arguments)

    monkeypatch.setattr(publish, "publish", wait)


def fail(monkeypatch, *numbers):
    """Let the writings with these numbers, from 1, fail."""
    count = [0]
    real = publish.publish

    def refuse(*arguments):
        count[0] += 1
        if count[0] in numbers:
            raise OSError(28, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(publish, "publish", refuse)


def test_the_same_checkpoints_with_the_same_content(trainer, regression, data):
    """Every byte is the same, but for times; a training that goes on from any of them ends as the undisturbed one."""
    ends = {}
    for in_background in (False, True):
        accmt.set_seed(0)
        module = regression(dropout=0.2)
        path = f"model-{in_background}"
        options = {"checkpoint_every": "2 steps", "checkpoint_async": in_background, "multiple_checkpoints": True}
        training = trainer(path, optimizer="AdamW", lr=0.01, **options)
        training.fit(module, data(20), data(8))
        ends[in_background] = module.model.state_dict()
        found = Checkpoints(training.model_path).all()
        assert [checkpoint.step for checkpoint in found] == [2, 4, 6, 8, 10]
        for checkpoint in found:
            assert publish.folder_problem(checkpoint.path) is None
            ends[in_background, checkpoint.step] = (checkpoint.path / "model.safetensors").read_bytes()
            ends[in_background, checkpoint.step] += (checkpoint.path / "optimizer.safetensors").read_bytes()
            ends[in_background, checkpoint.step] += (checkpoint.path / "rng-0.safetensors").read_bytes()
    for step in (2, 4, 6, 8, 10):
        assert ends[False, step] == ends[True, step]
    for index in (1, 3):
        accmt.set_seed(5)
        module = regression(dropout=0.2)
        options = {"checkpoint_every": "2 steps", "checkpoint_async": True, "multiple_checkpoints": True}
        trainer("model-True", optimizer="AdamW", lr=0.01, resume=index, **options).fit(module, data(20), data(8))
        assert all(torch.equal(value, ends[False][name]) for name, value in module.model.state_dict().items())


def test_the_training_goes_on_while_one_is_written(trainer, regression, data, monkeypatch):
    """The first is held up until the fourth step; only then it is known to be made, and the next one waits for it."""
    written, steps = threading.Event(), []

    class Releases(Follows):
        def on_after_training_step(self):
            steps.append((self.state.global_step, list(self.told)))
            if self.state.global_step == 3:
                written.set()

    slowly(monkeypatch, written)
    callback = Releases()
    training = trainer(callback=callback, epochs=1, checkpoint_every="2 steps", checkpoint_async=True)
    training.fit(regression(), data(40))
    assert steps[3] == (3, [])  # two steps were trained while it was being written
    assert len(callback.told) == 5
    assert training.state.num_checkpoints_made == 5


def test_at_most_one_is_under_way(trainer, regression, data, monkeypatch):
    under_way, most = [0], [0]
    real = publish.describe

    def count(files, flushes):
        under_way[0] += 1
        most[0] = max(most[0], under_way[0])
        entries = real(files, flushes)
        under_way[0] -= 1
        return entries

    monkeypatch.setattr(publish, "describe", count)
    trainer(checkpoint_every="1 step", checkpoint_async=True, disable_model_saving=True).fit(regression(), data(40))
    assert most == [1]
    assert not [thread for thread in threading.enumerate() if thread.name == "checkpoint"]


def test_what_could_not_be_written_is_a_warning_at_the_next_step(trainer, regression, data, monkeypatch, capsys):
    fail(monkeypatch, 2)
    callback = Follows()
    training = trainer(
        epochs=1, callback=callback, checkpoint_every="4 steps", checkpoint_async=True, disable_model_saving=True
    )
    training.fit(regression(), data(48))
    said = "warning: no checkpoint at step 8: OSError: [Errno 28] No space left on device"
    assert capsys.readouterr().out.count(said) == 1
    assert training.state.num_checkpoints_made == 2
    assert [checkpoint.step for checkpoint in Checkpoints(training.model_path).all()] == [12]
    assert not list(training.model_path.glob("checkpoints/.tmp-*"))


def test_the_last_good_one_stays_and_two_in_a_row_end_the_training(trainer, regression, data, monkeypatch, capsys):
    class Waits(Callback):
        def on_before_training_step(self, batch):
            for thread in threading.enumerate():
                if thread.name == "checkpoint":
                    thread.join()

    fail(monkeypatch, 2, 3)
    training = trainer(
        epochs=1, callback=Waits(), checkpoint_every="4 steps", checkpoint_async=True, disable_model_saving=True
    )
    with pytest.raises(Failed, match="No space left"):
        training.fit(regression(), data(60))
    assert "warning: no checkpoint at step 8" in capsys.readouterr().out
    assert training.state.global_step == 13
    assert [checkpoint.step for checkpoint in Checkpoints(training.model_path).all()] == [4]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_end_waits_for_what_is_being_written(trainer, regression, data, monkeypatch, kind):
    written = threading.Event()
    slowly(monkeypatch, written)

    class Breaks(Callback):
        def on_before_training_step(self, batch):
            if self.state.global_step == 3:
                threading.Timer(0.2, written.set).start()
                raise kind("stopped")

    training = trainer(callback=Breaks(), checkpoint_every="2 steps", checkpoint_async=True)
    with pytest.raises(kind, match="stopped"):
        training.fit(regression(), data(40))
    assert [checkpoint.step for checkpoint in Checkpoints(training.model_path).all()] == [2]


def test_the_error_of_the_training_goes_before_that_of_its_last_checkpoint(
    trainer, regression, data, monkeypatch, capsys
):
    fail(monkeypatch, 1, 2)
    held = threading.Event()
    slowly(monkeypatch, None, held)

    class Breaks(Callback):
        def on_before_training_step(self, batch):
            if self.state.global_step == 5:
                held.set()
                raise ValueError("mine")

    training = trainer(callback=Breaks(), checkpoint_every="2 steps", checkpoint_async=True, disable_model_saving=True)
    with pytest.raises(ValueError, match="mine"):
        training.fit(regression(), data(40))
    shown = capsys.readouterr().out
    assert shown.index("warning: no checkpoint at step 2") < shown.index(
        "warning: the last checkpoint could not be made"
    )


def test_without_checkpoints_there_is_nothing_to_write(trainer):
    for off in ({"enable_checkpointing": False}, {"checkpoint_every": None}):
        with pytest.raises(
            ConfigError, match="checkpoint_async: checkpoints are disabled: leave it out, or enable them"
        ):
            trainer(checkpoint_async=True, **off)

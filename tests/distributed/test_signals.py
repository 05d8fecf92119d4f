"""Signals end a training at a step, with a checkpoint, or ask for one; nothing of them is left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
import torch

import accmt
from accmt import Callback
from accmt.distributed import signals as signals_of_accmt
from accmt.distributed.signals import END, Signals

TAKEN = (signal.SIGTERM, signal.SIGUSR1)


class Sends(Callback):
    """Sends signals to this process in the given steps, and keeps what follows."""

    def __init__(self, **by_step):
        self.by_step = {int(step.removeprefix("at_")): number for step, number in by_step.items()}
        self.checkpoints, self.exceptions = [], []

    def on_after_training_step(self):
        if self.state.global_step in self.by_step:
            os.kill(os.getpid(), self.by_step[self.state.global_step])

    def on_save_checkpoint(self):
        self.checkpoints.append(self.state.global_step)

    def on_exception(self, exception):
        self.exceptions.append(exception)


@pytest.fixture
def handled():
    """A handler for SIGTERM that lets the process live, and the list of those that it got."""
    got = []

    def handler(number, frame):
        got.append(number)

    former = signal.signal(signal.SIGTERM, handler)
    yield got, handler
    signal.signal(signal.SIGTERM, former)


def weights(trained):
    return {name: value.clone() for name, value in trained.model.state_dict().items()}


@pytest.mark.parametrize("in_background", [False, True])
def test_the_end_comes_with_a_checkpoint_from_which_all_goes_on(
    trainer, regression, data, handled, capsys, in_background
):
    got, handler = handled
    whole = regression(dropout=0.2)
    trainer("whole", checkpoint_every="3 steps").fit(whole, data(20), data(8))
    accmt.set_seed(0)
    callback = Sends(at_3=signal.SIGTERM)
    arguments = {"checkpoint_every": "100 steps", "checkpoint_async": in_background}
    with pytest.raises(accmt.Terminated) as ended:
        trainer(callback=callback, **arguments).fit(regression(dropout=0.2), data(20), data(8))
    assert ended.value.code == 143
    assert got == [signal.SIGTERM]  # the script's own handler was told in the end
    assert signal.getsignal(signal.SIGTERM) is handler
    assert callback.checkpoints == [4]
    assert callback.exceptions == [ended.value]
    assert "interrupted at step 4; run again to continue from step 4" in capsys.readouterr().out
    accmt.set_seed(7)
    resumed = regression(dropout=0.2)
    trainer(**arguments).fit(resumed, data(20), data(8))
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())


def test_a_checkpoint_is_made_and_the_training_goes_on(trainer, regression, data):
    before = [signal.getsignal(number) for number in TAKEN]
    callback = Sends(at_1=signal.SIGUSR1, at_5=signal.SIGUSR1)
    trainer(callback=callback, checkpoint_every="100 steps").fit(regression(), data(20))
    assert callback.checkpoints == [2, 6, 10]
    assert [signal.getsignal(number) for number in TAKEN] == before


def test_in_the_last_step_everything_is_done_before_the_end(trainer, regression, data, handled):
    callback = Sends(at_9=signal.SIGTERM)
    training = trainer(callback=callback)
    with pytest.raises(accmt.Terminated):
        training.fit(regression(), data(20), data(8))
    assert training.state.finished
    assert len(training.decisions) == 2
    assert handled[0] == [signal.SIGTERM]
    assert callback.exceptions == []


def test_in_an_evaluation_it_waits_for_the_step_to_be_done(trainer, regression, data, handled, monkeypatch):
    class Late(Sends):
        def on_before_validation_step(self, batch):
            if self.state.global_step == 5:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)  # as from a launcher that passes it on: the same once more
                assert handled[0] == []
                monkeypatch.setattr(signals_of_accmt, "_SAME", -1.0)
                os.kill(os.getpid(), signal.SIGTERM)  # later: that is the script's own business at once
                assert handled[0] == [signal.SIGTERM]

    callback = Late()
    training = trainer(callback=callback)
    with pytest.raises(accmt.Terminated):
        training.fit(regression(), data(20), data(4))
    assert [decision.progress.step for decision in training.decisions] == [5]
    assert callback.checkpoints == [5]
    assert len(handled[0]) == 2


def test_without_checkpoints_it_only_ends(trainer, regression, data, handled):
    training = trainer(callback=Sends(at_3=signal.SIGTERM), enable_checkpointing=False)
    with pytest.raises(accmt.Terminated):
        training.fit(regression(), data(20))
    assert training.state.global_step == 4
    assert not (training.model_path / "checkpoints").exists()


def test_what_the_process_ignores_is_left_alone(trainer, regression, data):
    former = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        callback = Sends(at_1=signal.SIGTERM)
        trainer(callback=callback, checkpoint_every="100 steps").fit(regression(), data(20))
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, former)
    assert callback.checkpoints == [10]


def test_handlers_are_put_back_after_an_error(trainer, regression, data):
    class Broken(regression):
        def training_step(self, batch):
            raise ValueError("broken")

    before = [signal.getsignal(number) for number in TAKEN]
    with pytest.raises(ValueError, match="broken"):
        trainer().fit(Broken(), data(20))
    assert [signal.getsignal(number) for number in TAKEN] == before


def test_in_another_thread_nothing_is_taken(trainer, regression, data):
    seen = []

    class Looks(Callback):
        def on_fit_start(self):
            seen.extend(signal.getsignal(number) for number in TAKEN)

    before = [signal.getsignal(number) for number in TAKEN]
    training = trainer(callback=Looks())
    thread = threading.Thread(target=lambda: training.fit(regression(), data(20)))
    thread.start()
    thread.join()
    assert training.state.finished
    assert seen == before


def test_the_heaviest_counts_and_only_what_is_done_is_forgotten():
    signals = Signals()
    former = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with signals.watched():
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, former)
    assert signals.weight == END
    signals.forget(END)
    assert signals.weight == 1
    signals.forget(1)
    assert signals.weight == 0


SCRIPT = """
    import sys, time
    import torch
    from torch import nn
    from torch.utils.data import TensorDataset
    from accmt import AcceleratorModule, HyperParameters, Trainer

    class Module(AcceleratorModule):
        def __init__(self):
            self.model = nn.Linear(4, 1)
        def training_step(self, batch):
            print("step", flush=True)
            time.sleep(float(sys.argv[2]))
            return nn.functional.mse_loss(self.model(batch[0]), batch[1])

    x = torch.randn(4000, 4)
    data = TensorDataset(x, x.sum(1, keepdim=True))
    Trainer(HyperParameters(2, batch_size=4), sys.argv[1], dataloader_num_workers=0).fit(Module(), data)
"""


@pytest.mark.parametrize(("pause", "signals", "checkpoints"), [(0.01, 1, 1), (60, 2, 0)])
def test_a_real_process_ends_by_the_signal(tmp_path, pause, signals, checkpoints):
    """With a checkpoint; the second one ends it at once, even in the middle of a long step."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, str(script), str(tmp_path / "model"), str(pause)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.stdout.readline() != "step\n":
        pass
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
        if signals > 1:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2)
    output, errors = process.communicate()
    assert process.returncode == -signal.SIGTERM, errors
    assert ("interrupted at step" in output) == bool(checkpoints)
    assert len(list((tmp_path / "model" / "checkpoints").glob("checkpoint-*"))) == checkpoints
    assert "Traceback" not in errors

"""Trainings that `test_ends.py` launches on two processes: `ends.py FOLDER`. Each process writes what it saw."""

import json
import os
import sys
import threading
import time
import warnings
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn
from torch.utils.data import TensorDataset

from accmt import AcceleratorModule, Callback, FunctionMetric, HyperParameters, Trainer, set_seed
from accmt.checkpoint import publish
from accmt.checkpoint.checkpointer import Checkpointer

torch.set_num_threads(1)
folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])


class Module(AcceleratorModule):
    def __init__(self):
        self.model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 1))

    def training_step(self, batch):
        return nn.functional.mse_loss(self.model(batch[0]), batch[1])

    def validation_step(self, key, batch):
        outputs = self.model(batch[0])
        return {"loss": nn.functional.mse_loss(outputs, batch[1]), "error": (outputs, batch[1])}


class Unprepared(Module):
    def get_optimizer(self):
        raise ArithmeticError("prepare")


class Raises(Callback):
    def __init__(self, error, again=False):
        super().__init__()
        self.error, self.again = error, again

    def on_after_training_step(self):
        if self.state.global_step == 3:
            raise self.error

    def on_exception(self, exception):
        if self.again:
            raise LookupError("a hook fails as well")


def data(count, seed=0):
    inputs = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, inputs.sum(1, keepdim=True))


def make(name, **arguments):
    given = {"dataloader_num_workers": 0, "quiet": True, "destroy_after_training": False, **arguments}
    return Trainer(HyperParameters(1, None, 4, "SGD", {"lr": 0.05}), folder / name, **given)


def groups():
    return len(dist.distributed_c10d._world.pg_map)


def held():
    threads = len(threading.enumerate())
    return groups(), threads, len([name for name in os.listdir("/proc/self/fd")])


def ended(name, module=Module, datasets=(32, 5), **arguments):
    """How a training ended, and what this process holds afterwards."""
    how = "by itself"
    try:
        training = make(name, checkpoint_async=True, checkpoint_every="2 steps", resume=False, **arguments)
        training.fit(module(), *(None if count is None else data(count) for count in datasets))
    except BaseException as error:
        how = type(error).__name__
    return how, *held()


def all_ends():
    ended("first")  # what is kept from the first use on
    return [
        ended("good"),
        ended("step", callback=Raises(ArithmeticError("mine"))),
        ended("interrupt", callback=Raises(KeyboardInterrupt())),
        ended("exit", callback=Raises(SystemExit(3))),
        ended("hook", callback=Raises(ArithmeticError("mine"), again=True)),
        ended("prepare", Unprepared),
        ended("again"),
        ended("good", patience=1),
    ]


def evaluated():
    """The weights of a training whose callback evaluates, on as many samples as one process has more than the other,
    and of one without."""

    class Evaluates(Callback):
        def on_after_training_step(self):
            values.append(self.trainer.evaluate(self.module, data(7, 1))["0"]["error"])

    found, values = [], []
    for name, callback in (("without", None), ("with", Evaluates())):
        set_seed(0)
        module = Module()
        error = FunctionMetric("error", lambda p, t: (p - t).abs().mean(), greater_is_better=False)
        make(name, callback=callback, metrics=error).fit(module, data(32), data(5, 2))
        found.append([value.tolist() for value in module.model.state_dict().values()])
    return found, values


def blocked():
    """How often the loop waited for what was still being written, and how often it asked."""
    calls, real, write = [], Checkpointer.finish, publish.publish
    may_end = threading.Event()

    def finish(self):
        if sys._getframe(2).f_code.co_name == "_settle":
            calls.append(self.is_writing)
        return real(self)

    def slow(*arguments):
        assert may_end.wait(300), "the loop waits as well"
        write(*arguments)

    class Slow(Module):
        def training_step(self, batch):
            time.sleep(0.01)
            if self.state.global_step == 15:  # after the checkpoint at 10, before the next
                may_end.set()
            if calls:
                self.trainer.stop("it has heard that all is written")
            return super().training_step(batch)

    Checkpointer.finish, publish.publish = finish, slow
    try:
        training = make("blocked", checkpoint_async=True, checkpoint_every="10 steps", log_every=1)
        training.fit(Slow(), data(8 * 3000))
    finally:
        Checkpointer.finish, publish.publish = real, write
    return len(calls), sum(calls)


def warned():
    """A checkpoint that cannot be made, where the script turns warnings into errors."""
    real, calls = publish.publish, []

    def fails(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        real(*arguments)

    publish.publish = fails
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            training = make("warned", checkpoint_every="2 steps")
            training.fit(Module(), data(32))
    finally:
        publish.publish = real
    return training.state.global_step, training.state.num_checkpoints_made


def last():
    """Without a word about the group of processes it ends with a training that fails, too."""
    try:
        make("last", destroy_after_training=True, callback=Raises(ArithmeticError("mine"))).fit(Module(), data(32))
    except ArithmeticError:
        return dist.is_initialized()
    return None


own = {"ends": all_ends(), "evaluated": evaluated(), "blocked": blocked(), "warned": warned(), "last": last()}
(folder / f"rank{rank}.json").write_text(json.dumps(own))

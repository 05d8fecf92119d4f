"""Batches on their way to the device: a GPU copies them in a stream of their own."""

from collections import namedtuple
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from accmt import Callback, Monitor
from accmt.data.device import DeviceTransfer

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
Pair = namedtuple("Pair", ["inputs", "targets"])
DEVICE = torch.device("meta")  # in the place of a GPU: nothing is computed, and all that is moved is seen there


class Streams:
    """Notes what happens to streams: `in` and `out` of the one of the copies, which the other waits for."""

    def __init__(self, monkeypatch):
        self.events, self.recorded = [], []
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self)
        monkeypatch.setattr(torch.cuda, "stream", self._used)
        record = lambda tensor, stream: self.recorded.append(tensor)  # noqa: E731
        monkeypatch.setattr(torch.Tensor, "record_stream", record)

    @contextmanager
    def _used(self, stream):
        self.events.append(f"in {stream}")
        yield
        self.events.append(f"out {stream}")

    def wait_stream(self, stream):
        self.events.append(f"wait {stream}")


BATCHES = {
    "a tensor": lambda: torch.ones(2),
    "a list": lambda: [torch.ones(2), torch.zeros(3)],
    "a named tuple": lambda: Pair(torch.ones(2), None),
    "nested": lambda: {"x": [torch.ones(2), {"y": (torch.ones(1), "text", 3)}], "z": torch.ones(1)},
    "packed": lambda: pack_sequence([torch.ones(2), torch.ones(1)]),
    "nothing": lambda: {"text": "words"},
}


@pytest.mark.parametrize("make", BATCHES.values(), ids=BATCHES)
def test_batches_are_copied_in_their_own_stream(make, monkeypatch):
    streams = Streams(monkeypatch)
    batch = make()
    moved = DeviceTransfer(DEVICE, None, "copies")(batch)
    assert type(moved) is type(batch)
    assert streams.events == ["in copies", "out copies", "wait copies"]
    found = []
    collect(moved, found)
    moved_there = [tensor for tensor in found if tensor.device == DEVICE]
    assert list(map(id, streams.recorded)) == list(map(id, moved_there))
    assert len(moved_there) == {"nested": 3, "a list": 2, "nothing": 0}.get(named(make), 1)


def named(make):
    return next(name for name, each in BATCHES.items() if each is make)


def collect(value, found):
    if isinstance(value, torch.Tensor):
        found.append(value)
    elif isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            collect(each, found)


class Own:
    """A batch that moves itself, with tensors that nobody else sees."""

    def __init__(self):
        self.hidden = torch.ones(2)

    def to(self, device, non_blocking=False):
        self.hidden = self.hidden.to(device)
        return self


@pytest.mark.parametrize(
    "make",
    [
        Own,
        lambda: [torch.ones(1), Own()],
        lambda: torch.ones(1, device=DEVICE),  # made in the stream of the steps
        lambda: torch.eye(2).to_sparse(),
        lambda: nn.Parameter(torch.ones(1)),
    ],
    ids=["own", "own within", "on the device", "sparse", "parameter"],
)
def test_batches_that_a_stream_cannot_follow_are_copied_among_the_steps(make, monkeypatch):
    streams = Streams(monkeypatch)
    moved = DeviceTransfer(DEVICE, None, "copies")(make())
    assert (streams.events, streams.recorded) == ([], [])
    last = moved[-1] if isinstance(moved, list) else moved
    assert getattr(last, "hidden", last).device == DEVICE


@GPU
def test_copied_batches_are_those_of_the_loader():
    place = DeviceTransfer(torch.device("cuda"), None, torch.cuda.Stream())
    batches = [{"x": torch.randn(512, 512).pin_memory(), "y": [torch.tensor(number)]} for number in range(64)]
    sums = []
    for batch in batches:
        moved = place(batch)
        sums.append((moved["x"] @ moved["x"]).sum() + moved["y"][0])
        del moved
    for batch, found in zip(batches, sums, strict=True):
        x = batch["x"].cuda()
        assert torch.equal((x @ x).sum() + batch["y"][0].cuda(), found)


class SyncIsAnError(Callback):
    """Lets no step but the first and the last wait for the GPU."""

    def on_before_training_step(self, batch):
        torch.cuda.set_sync_debug_mode("error" if 2 <= self.state.global_step < 14 else "default")

    def on_fit_end(self):
        torch.cuda.set_sync_debug_mode("default")


@GPU
@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_nothing_waits_for_a_gpu_between_two_looks(optimizer, trainer, regression, data):
    module = regression(0.1)
    try:
        trainer(
            epochs=1,
            optimizer=optimizer,
            callback=SyncIsAnError(),
            clip_grad=1.0,
            log_every=16,
            monitor=Monitor(grad_norm=True),
        ).fit(module, data(64))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(parameter.isfinite().all() for parameter in module.model.parameters())

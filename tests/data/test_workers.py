"""Signals that reach the processes that load batches, while they are being started."""

import os
import signal

import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from accmt.data.workers import outlast_signals


class Signalled(Dataset):
    """Gets signals where a process takes it up that was started anew."""

    def __init__(self):
        self.process = os.getpid()

    def __setstate__(self, state):
        self.__dict__.update(state)
        raise_both()

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.tensor(index if os.getpid() != self.process else -1)


def raise_both():
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGUSR1)


@pytest.mark.parametrize("method", [None, "fork", "spawn"])
def test_a_worker_that_gets_signals_before_it_is_ready_loads_all_the_same(monkeypatch, method):
    original = signal_handling._set_worker_signal_handlers

    def then_get_both():
        original()
        raise_both()

    monkeypatch.setattr(signal_handling, "_set_worker_signal_handlers", then_get_both)  # in the fork
    loader = DataLoader(Signalled(), batch_size=2, num_workers=2, multiprocessing_context=method)
    outlast_signals(loader)
    assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3]]
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGTERM, signal.SIGUSR1}

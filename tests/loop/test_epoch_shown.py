"""Completed epochs, and the clock that leaves out evaluations."""

import pytest

from accmt.loop.progress import Stopwatch, epoch_shown
from accmt.rules import Progress


@pytest.mark.parametrize(
    ("step", "epoch", "within", "shown"),
    [
        (0, 0, 0, "0.0/10"),
        (1, 0, 1, "0.0/10"),
        (50, 0, 50, "0.5/10"),
        (99, 0, 99, "0.9/10"),
        (100, 1, 0, "1/10"),
        (101, 1, 1, "1.0/10"),
        (999, 9, 99, "9.9/10"),
        (1000, 10, 0, "10/10"),
        (50, 0, 250, "0.9/10"),  # an epoch that was longer when it began
    ],
)
def test_epochs(step, epoch, within, shown):
    assert epoch_shown(Progress(step=step, epoch=epoch, step_in_epoch=within), 100, 10) == shown


def test_epochs_of_unknown_length():
    assert epoch_shown(Progress(step=5, epoch=1, step_in_epoch=2), None, 3) == "1/3"
    assert epoch_shown(Progress(step=5, epoch=1, step_in_epoch=2), None, None) == "1"


def test_the_clock_counts_only_while_it_runs(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = Stopwatch()
    now[0] += 0.5
    for act, seconds in (
        (clock.pause, 1.0),
        (clock.run, 2.0),
        (clock.run, 4.0),
        (clock.pause, 8.0),
        (clock.pause, 16.0),
    ):
        act()
        now[0] += seconds
    assert clock.elapsed() == 6.5
    clock.run()
    now[0] += 32.0
    assert clock.elapsed() == 38.5

"""Epochs as people count them, and the clock that leaves out evaluations."""

import pytest

from accmt.loop.progress import Stopwatch, epoch_shown
from accmt.rules import Progress


@pytest.mark.parametrize(
    ("step", "epoch", "within", "shown"),
    [
        (0, 0, 0, "1.0/10"),
        (1, 0, 1, "1.0/10"),
        (50, 0, 50, "1.5/10"),
        (99, 0, 99, "1.9/10"),
        (100, 1, 0, "1/10"),
        (101, 1, 1, "2.0/10"),
        (999, 9, 99, "10.9/10"),
        (1000, 10, 0, "10/10"),
        (50, 0, 250, "1.9/10"),  # an epoch that was longer when it began
    ],
)
def test_epochs(step, epoch, within, shown):
    assert epoch_shown(Progress(step=step, epoch=epoch, step_in_epoch=within), 100, 10) == shown


def test_epochs_of_unknown_length():
    assert epoch_shown(Progress(step=5, epoch=1, step_in_epoch=2), None, 3) == "2/3"
    assert epoch_shown(Progress(step=5, epoch=1, step_in_epoch=2), None, None) == "2"


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


def test_the_epoch_of_a_bar_never_falls():
    running = [Progress(step=step, epoch=step // 10, step_in_epoch=step % 10) for step in range(21)]
    bar = [epoch_shown(progress, 10, 2, ahead=True) for progress in running]
    assert bar == [*(f"1.{n}/2" for n in range(10)), *(f"2.{n}/2" for n in range(10)), "2/2"]
    assert epoch_shown(running[10], None, 2, ahead=True) == "1/2"

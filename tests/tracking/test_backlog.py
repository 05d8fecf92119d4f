"""What waits for a tracker: in order, bounded, and counted where it is lost."""

import threading
from pathlib import Path

import pytest

from accmt.tracking.backlog import Backlog, Count, File, merged
from accmt.tracking.tracker import Logged


def logged(step, **values):
    return Logged(values or {"loss": 1.0}, step, 0.0)


def filled(*entries, most=100):
    backlog = Backlog(most, 0.0)
    for entry in entries:
        backlog.put(entry)
    return backlog


def file(name="a"):
    return File(Path(name), is_folder=False)


def test_values_go_together_and_files_alone_all_in_order():
    first, second = file(), file()
    backlog = filled(logged(1), logged(2), first, second, logged(3))
    backlog.close()
    taken = []
    while job := backlog.take(merging=False):
        taken.append(job)
        backlog.settle(1 if isinstance(job, File) else len(job), lost=False)
    assert taken == [[logged(1), logged(2)], first, second, [logged(3)]]
    assert first.done.is_set()
    assert str(backlog.drop()) == ""


def test_a_batch_has_an_end():
    backlog = filled(*(logged(step, **{f"v{n}": 1.0 for n in range(100)}) for step in range(15)), most=2000)
    sizes = []
    backlog.close()
    while job := backlog.take(merging=False):
        sizes.append(len(job))
        backlog.settle(len(job), lost=False)
    assert sizes == [10, 5]


def test_an_entry_that_is_larger_than_a_batch_goes_alone():
    large = logged(2, **{f"v{n}": 1.0 for n in range(1500)})
    backlog = filled(logged(1), large, logged(3), most=2000)
    backlog.close()
    for expected in ([logged(1)], [large], [logged(3)]):
        assert backlog.take(merging=False) == expected
        backlog.settle(1, lost=False)


def test_the_oldest_values_are_left_out_and_files_are_not():
    kept = file()
    backlog = filled(logged(1), kept, logged(2), most=2)
    assert not backlog.put(logged(3))
    assert not backlog.put(logged(4))
    assert backlog.take(merging=False) is kept
    backlog.settle(1, lost=False)
    assert backlog.take(merging=False) == [logged(3), logged(4)]
    backlog.settle(2, lost=False)
    assert str(backlog.drop()) == "2 values (steps 1 to 2)"


def test_what_is_in_hand_counts_as_lost_when_it_is_abandoned():
    waiting = file()
    backlog = filled(logged(1, a=1.0, b=2.0), logged(2))
    backlog.take(merging=False)
    backlog.put(waiting)
    backlog.abandon()
    backlog.settle(2, lost=True)
    assert waiting.done.is_set()
    assert backlog.put(logged(5))
    assert not backlog.take(merging=False)
    assert str(backlog.drop()) == "4 values (steps 1 to 5), 1 artifact"
    assert str(backlog.drop()) == ""


def test_take_waits_for_something():
    backlog, taken = Backlog(10, 0.0), []
    thread = threading.Thread(target=lambda: taken.append(backlog.take(merging=False)))
    thread.start()
    backlog.put(logged(1))
    thread.join(30)
    assert taken == [[logged(1)]]


def test_values_gather_until_the_backlog_is_closed():
    backlog, taken = Backlog(10, 3600.0), []
    backlog.put(logged(1))
    backlog.take(merging=False)
    backlog.settle(1, lost=False)
    thread = threading.Thread(target=lambda: taken.append(backlog.take(merging=False)))
    thread.start()
    for step in (2, 3, 4):
        backlog.put(logged(step))
    backlog.close()
    thread.join(30)
    assert taken == [[logged(2), logged(3), logged(4)]]


def test_a_file_does_not_wait_for_values_to_gather():
    backlog, taken = Backlog(10, 3600.0), []
    backlog.put(logged(1))
    backlog.take(merging=False)
    backlog.settle(1, lost=False)
    thread = threading.Thread(target=lambda: taken.append(backlog.take(merging=False)))
    thread.start()
    backlog.put(logged(2))
    backlog.put(file())
    thread.join(30)
    assert taken == [[logged(2)]]


def test_pauses_end_with_the_backlog():
    backlog = Backlog(10, 0.0)
    assert backlog.pause(0.0)
    outcome = []
    thread = threading.Thread(target=lambda: outcome.append(backlog.pause(3600.0)))
    thread.start()
    backlog.close()
    thread.join(30)
    assert outcome in ([True], [False])  # closed during the pause, or before it
    assert not backlog.pause(3600.0)


def test_values_of_one_step_are_merged_unless_a_name_comes_twice():
    entries = [logged(1, a=1.0), logged(1, b=2.0), logged(1, a=3.0), logged(2, c=4.0), logged(1, d=5.0)]
    assert [(entry.step, entry.values) for entry in merged(entries)] == [
        (1, {"a": 1.0, "b": 2.0}),
        (1, {"a": 3.0}),
        (2, {"c": 4.0}),
        (1, {"d": 5.0}),
    ]


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ([], ""),
        ([logged(7)], "1 value (step 7)"),
        ([logged(7, a=1.0, b=1.0)], "2 values (step 7)"),
        ([logged(9), logged(3)], "2 values (steps 3 to 9)"),
        ([file(), file("b")], "2 artifacts"),
        ([logged(3), file()], "1 value (step 3), 1 artifact"),
        ([logged(step) for step in range(1200)], "1,200 values (steps 0 to 1199)"),
    ],
)
def test_counts_read_well(entries, text):
    count = Count()
    for entry in entries:
        count.add(entry)
    assert str(count) == text

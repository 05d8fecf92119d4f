"""What waits for a tracker: in order, taken together, and counted where it is lost."""

import threading
from pathlib import Path

import pytest
from accmt.tracking.backlog import Backlog
from accmt.tracking.entries import Count, Ended, File, merged

from accmt.tracking.tracker import Logged, Resumption


def logged(step, **values):
    return Logged(values or {"loss": 1.0}, step, step)


def file(name="a", time=0):
    return File(Path(name), False, time)


@pytest.fixture
def filled(outbox_for):
    """Entries -> a backlog of them."""

    def fill(*entries, interval=0.0):
        backlog = Backlog(outbox_for("mine"), 100, interval)
        for entry in entries:
            backlog.put(entry)
        return backlog

    return fill


def taken(backlog, merging=False):
    """All that is in a backlog, as it is taken."""
    jobs = []
    backlog.close()
    while job := backlog.take(merging=merging):
        jobs.append(job)
        backlog.settle(1 if isinstance(job, File | Ended) else len(job), backlog.sent)
    return jobs


def test_values_go_together_and_the_rest_alone_all_in_order(filled):
    end = Ended("FINISHED", 9)
    backlog = filled(logged(1), logged(2), file("a"), file("b"), logged(3), end)
    assert taken(backlog) == [[logged(1), logged(2)], file("a"), file("b"), [logged(3)], end]
    assert str(backlog.sent) == "3 values (steps 1 to 3), 2 artifacts, the status FINISHED"
    assert str(backlog.leave()) == ""


def test_a_batch_has_an_end(filled):
    backlog = filled(*(logged(step, **{f"v{n}": 1.0 for n in range(100)}) for step in range(15)))
    assert [len(job) for job in taken(backlog)] == [10, 5]


def test_an_entry_that_is_larger_than_a_batch_goes_alone(filled):
    large = logged(2, **{f"v{n}": 1.0 for n in range(1500)})
    assert taken(filled(logged(1), large, logged(3))) == [[logged(1)], [large], [logged(3)]]


def test_what_a_training_logs_again_goes_by_itself(filled):
    """So that what came before is there when it is looked what is there."""
    resumption = Resumption(1, 1, 2)
    again = Logged({"loss": 1.0}, 2, 3, resumption)
    backlog = filled(logged(1))
    backlog._outbox.resumption = resumption
    backlog.put(again)
    backlog.put(again)
    assert taken(backlog) == [[logged(1)], [again, again]]


def test_merged_entries_are_settled_as_one(filled):
    backlog = filled(logged(1, a=1.0), logged(1, b=2.0), logged(2, a=3.0))
    backlog.close()
    assert [entry.values for entry in backlog.take(merging=True)] == [{"a": 1.0, "b": 2.0}, {"a": 3.0}]
    backlog.settle(1, backlog.sent)
    assert str(backlog.sent) == "2 values (step 1)"
    assert str(backlog.leave()) == "1 value (step 2)", "both that were merged are sent, and the next is not"


def test_who_waits_for_a_file_is_told_when_it_is_sent_or_given_up(filled):
    backlog = filled()
    first, second = backlog.put(file("a")), backlog.put(file("b"))
    backlog.take(merging=False)
    assert not first.is_set()
    backlog.settle(1, backlog.sent)
    assert first.is_set()
    assert not second.is_set()
    backlog.abandon()
    assert second.is_set()
    assert str(backlog.leave()) == "1 artifact"


def test_what_is_in_hand_when_it_is_abandoned_waits_on(filled):
    backlog = filled(logged(1), logged(2))
    backlog.take(merging=False)
    backlog.abandon()
    backlog.settle(2, backlog.sent)
    assert backlog.take(merging=False) == ()
    assert (str(backlog.leave()), str(backlog.sent)) == ("2 values (steps 1 to 2)", "")


def test_what_is_lost_does_not_wait(filled):
    backlog = filled(logged(1), logged(2))
    backlog.take(merging=False)
    backlog.settle(1, backlog.lost)
    assert (str(backlog.leave()), str(backlog.lost)) == ("1 value (step 2)", "1 value (step 1)")


def test_a_pause_ends_when_the_backlog_is_closed(filled):
    backlog = filled()
    timer = threading.Timer(0.05, backlog.close)
    timer.start()
    assert backlog.pause(600.0)
    assert backlog.is_closed
    assert backlog.pause(600.0)
    backlog.abandon()
    assert not backlog.pause(600.0)
    timer.join()


@pytest.mark.parametrize("urgent", ["close", "file", "many"])
def test_what_gathers_goes_along_until_it_is_urgent(filled, urgent):
    backlog = filled(logged(0), interval=3600.0)
    assert backlog.take(merging=False) == [logged(0)]
    backlog.settle(1, backlog.sent)
    jobs = []
    thread = threading.Thread(target=lambda: jobs.append(backlog.take(merging=False)))
    thread.start()
    backlog.put(logged(1))
    backlog.put(logged(2))
    if urgent == "close":
        backlog.close()
    elif urgent == "file":
        backlog.put(file())
    else:
        for step in range(3, 1003):
            backlog.put(logged(step))
    thread.join(30)
    assert jobs[0][:2] == [logged(1), logged(2)]


def test_an_idle_thread_wakes_for_the_first_value(filled):
    backlog = filled(interval=3600.0)
    jobs = []
    thread = threading.Thread(target=lambda: jobs.append(backlog.take(merging=False)))
    thread.start()
    backlog.put(logged(1))
    thread.join(30)
    assert jobs == [[logged(1)]]


def test_merging_keeps_what_would_be_overwritten():
    entries = [logged(1, a=1.0), logged(1, b=2.0), logged(1, a=3.0), logged(2, c=4.0), logged(1, d=5.0)]
    assert [(entry.step, entry.values, count) for entry, count in merged(entries)] == [
        (1, {"a": 1.0, "b": 2.0}, 2),
        (1, {"a": 3.0}, 1),
        (2, {"c": 4.0}, 1),
        (1, {"d": 5.0}, 1),
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
        ([Ended("KILLED", 0)], "the status KILLED"),
        ([logged(step) for step in range(1200)], "1,200 values (steps 0 to 1199)"),
    ],
)
def test_counts_read_well(entries, text):
    count = Count()
    for entry in entries:
        count.add(entry)
    assert str(count) == text
    assert bool(count) == bool(entries)

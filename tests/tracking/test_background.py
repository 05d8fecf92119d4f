"""A tracker in the background neither stops nor slows who calls it, and what it does not take is said."""

import errno
import threading

import pytest
import torch

from accmt.tracking import segment
from accmt.tracking.background import BackgroundTracker, Limits, MultiTracker
from accmt.tracking.outbox import FOLDER, Outbox
from accmt.tracking.tracker import NoArtifacts, Resumption, Unreachable

QUICK = Limits(interval=0.0, pause=0.0)
SLOW = Limits(interval=0.0)
HASTY = Limits(interval=0.0, pause=0.0, start=0.0, artifact=0.0, end=0.0, end_with_artifacts=0.0, end_when_killed=0.0)


@pytest.fixture
def warned():
    return []


@pytest.fixture
def outbox(outbox_for):
    return outbox_for("recorder")


@pytest.fixture
def begun(warned, outbox):
    """A tracker -> the same in the background."""

    def begin(tracker, limits=QUICK, box=outbox):
        background = BackgroundTracker(
            "recorder", lambda: tracker, warned.append, box, limits=limits, later="accmt sync X"
        )
        background.start(may_be_late=False)
        return background

    return begin


@pytest.fixture
def waiting(tmp_path, outbox):
    """What waits on the disk, in words; None if there is no outbox any more."""

    def count():
        if not (tmp_path / "model" / FOLDER).exists():
            return None
        found = Outbox(tmp_path / "model", outbox.recipient)
        left = str(found.left())
        found.release()
        return left

    return count


def test_everything_arrives_in_order_on_one_other_thread(begun, recorder, warned, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "model").mkdir()
    tracker = begun(recorder)
    tracker.log({"a": 1}, 1)
    tracker.log_artifact(tmp_path / "notes.txt")
    tracker.log({"b": torch.tensor(2.5)}, 2)
    tracker.log_artifacts(str(tmp_path / "model"))
    tracker.log({"c": 3}, 3)
    tracker.close("FINISHED")
    assert recorder.calls == [
        ("log", {"a": 1.0}, 1),
        ("file", "notes.txt"),
        ("log", {"b": 2.5}, 2),
        ("folder", "model"),
        ("log", {"c": 3.0}, 3),
        ("close", "FINISHED"),
    ]
    assert len(recorder.threads) == 1
    assert threading.get_ident() not in recorder.threads
    assert warned == []
    assert not any(thread.name == "tracker recorder" for thread in threading.enumerate())


def test_what_gathers_behind_a_slow_call_goes_out_together(begun, batch_recorder, warned):
    tracker = begun(batch_recorder)
    batch_recorder.free.clear()
    tracker.log({"loss": 0}, 0)
    assert batch_recorder.entered.wait(30)
    for step in range(1, 1001):
        tracker.log({"loss": step}, step)
    assert batch_recorder.calls == [], "a thousand calls came back while the first was not done"
    batch_recorder.free.set()
    tracker.close("FINISHED")
    batches = [batch for kind, batch in batch_recorder.calls if kind == "batch"]
    assert [len(batch) for batch in batches] == [1, 1000]
    assert [step for batch in batches for _, step in batch] == list(range(1001))


def test_values_of_a_step_are_one_call_for_a_tracker_without_batches(begun, recorder, warned):
    tracker = begun(recorder, Limits(interval=3600.0))
    tracker.log({"first": 1}, 1)
    assert recorder.entered.wait(30)
    tracker.log({"train_loss": 0.5}, 2)
    tracker.log({"val_loss": 0.25}, 2)
    tracker.close("FINISHED")
    assert recorder.calls[1:] == [("log", {"train_loss": 0.5, "val_loss": 0.25}, 2), ("close", "FINISHED")]


def test_a_refusal_is_one_warning_and_the_rest_is_sent(begun, recorder, warned):
    recorder.failures = [ValueError("bad\nvalue"), None, ValueError("another")]
    tracker = begun(recorder)
    for step in (1, 2, 3, 4):
        tracker.log({"loss": step, "more": step}, step)
    tracker.close("FINISHED")
    assert recorder.calls == [
        ("log", {"loss": 2.0, "more": 2.0}, 2),
        ("log", {"loss": 4.0, "more": 4.0}, 4),
        ("close", "FINISHED"),
    ]
    assert warned == [
        "recorder: the tracker takes no values: ValueError: bad value",
        "recorder: not sent: 4 values (steps 1 to 3); ValueError: another",
    ]


def test_of_a_refused_batch_only_what_is_refused_is_lost(begun, batch_recorder, warned):
    def dislikes_three(call):
        return ValueError("no") if call[0] == "batch" and any(step == 3 for _, step in call[1]) else None

    batch_recorder.failures = [None, *[dislikes_three] * 20]
    tracker = begun(batch_recorder, Limits(interval=3600.0))
    tracker.log({"loss": 0}, 0)
    assert batch_recorder.entered.wait(30)
    for step in range(1, 6):
        tracker.log({"loss": step}, step)
    tracker.close("FINISHED")
    steps = [step for kind, batch in batch_recorder.calls if kind == "batch" for _, step in batch]
    assert steps == [0, 1, 2, 4, 5]
    assert warned == [
        "recorder: the tracker takes no values: ValueError: no",
        "recorder: not sent: 1 value (step 3); ValueError: no",
    ]


def test_while_it_is_unreachable_the_same_is_tried_again(begun, recorder, warned, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    recorder.failures = [Unreachable("no route")] * 3 + [None] + [Unreachable("again")] * 2
    tracker = begun(recorder)
    tracker.log({"loss": 1}, 1)
    assert recorder.entered.wait(30)
    tracker.log({"loss": 2}, 2)
    recorder.free.wait(30)
    wait_for(lambda: len(recorder.calls) == 2)
    tracker.close("FINISHED")
    assert recorder.calls == [("log", {"loss": 1.0}, 1), ("log", {"loss": 2.0}, 2), ("close", "FINISHED")]
    assert warned == ["recorder does not answer, the training goes on without: no route"]


def wait_for(condition):
    pause = threading.Event()
    for _ in range(3000):
        if condition():
            return
        pause.wait(0.01)
    pytest.fail("it did not come to pass")


def test_unreachable_to_the_end(begun, recorder, warned, waiting):
    recorder.failures = [Unreachable("no route")] * 1000
    tracker = begun(recorder, Limits(interval=0.0))
    for step in (1, 2, 3):
        tracker.log({"loss": step}, step)
    tracker.close("KILLED")
    assert recorder.calls == []
    assert warned == [
        "recorder does not answer, the training goes on without: no route",
        "recorder: not sent yet: 3 values (steps 1 to 3), the status KILLED; no route; later: accmt sync X",
    ]
    assert waiting() == "3 values (steps 1 to 3), the status KILLED"


def test_an_attempt_that_began_before_the_end_is_not_the_last(begun, recorder, warned, waiting):
    recorder.failures = [Unreachable("no route")]
    recorder.free.clear()
    tracker = begun(recorder, SLOW)
    tracker.log({"loss": 1}, 1)
    assert recorder.entered.wait(30)
    tracker.close_soon("FINISHED")
    recorder.free.set()
    tracker.finish_and_say()
    assert recorder.calls == [("log", {"loss": 1.0}, 1), ("close", "FINISHED")]
    assert waiting() is None


def test_a_tracker_that_hangs_is_left_behind(begun, recorder, warned, waiting, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    recorder.free.clear()
    tracker = begun(recorder, HASTY)
    tracker.log({"loss": 1}, 1)
    assert recorder.entered.wait(30)
    tracker.log({"loss": 2}, 2)
    tracker.log_artifact(tmp_path / "notes.txt")
    tracker.close("FINISHED")
    assert warned == [
        f"recorder: '{tmp_path / 'notes.txt'}' is not sent yet: leave it as it is while the training goes on",
        "recorder: not sent yet: 2 values (steps 1 to 2), 1 artifact, the status FINISHED; it did not answer in time; "
        "later: accmt sync X",
    ]
    tracker.log({"loss": 3}, 3)
    assert warned[2:] == [
        "recorder: not sent yet: 3 values (steps 1 to 3), 1 artifact, the status FINISHED; it did not answer in time; "
        "later: accmt sync X"
    ]
    assert waiting() == "3 values (steps 1 to 3), 1 artifact, the status FINISHED"
    recorder.free.set()
    wait_for(lambda: not any(thread.name == "tracker recorder" for thread in threading.enumerate()))
    assert recorder.calls == [("log", {"loss": 1.0}, 1)], "nothing is sent behind the back of who was told otherwise"


def test_who_interrupts_a_training_does_not_wait_for_long(begun, recorder, warned, waiting):
    recorder.free.clear()
    tracker = begun(recorder, Limits(interval=0.0, end=3600.0, end_with_artifacts=3600.0, end_when_killed=0.0))
    tracker.log({"loss": 1}, 1)
    assert recorder.entered.wait(30)
    tracker.close("KILLED")
    recorder.free.set()
    assert waiting() == "1 value (step 1), the status KILLED"


def test_an_end_that_is_refused_is_said(begun, recorder, warned):
    recorder.failures = [None, PermissionError("not yours")]
    tracker = begun(recorder)
    tracker.log({"loss": 1}, 1)
    tracker.close("FINISHED")
    assert warned == ["recorder: not sent: the status FINISHED; PermissionError: not yours"]


def test_after_the_end_things_are_sent_at_once(begun, recorder, warned, waiting, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    tracker = begun(recorder)
    tracker.close("FINISHED")
    tracker.log_artifact(tmp_path / "notes.txt")
    tracker.log({"loss": 1}, 9)
    assert recorder.calls == [("close", "FINISHED"), ("file", "notes.txt"), ("log", {"loss": 1.0}, 9)]
    recorder.failures = [OSError("gone")]
    tracker.log_artifact(tmp_path / "notes.txt")
    assert warned == [
        f"recorder: the tracker takes no artifact '{tmp_path / 'notes.txt'}': OSError: gone",
        "recorder: not sent yet: 1 artifact; OSError: gone; later: accmt sync X",
    ]
    recorder.failures = []
    tracker.log({"loss": 2}, 10)
    assert recorder.calls[3:] == [("file", "notes.txt"), ("log", {"loss": 2.0}, 10)], "it is tried again"
    assert waiting() is None


def test_artifacts_that_are_not_there_or_not_taken(begun, recorder, warned, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    recorder.failures = [NoArtifacts("no place")] * 2
    tracker = begun(recorder)
    tracker.log_artifact(tmp_path / "nots.txt")
    tracker.log_artifacts(tmp_path / "notes.txt")
    tracker.log_artifact(tmp_path / "notes.txt")
    tracker.log_artifact(tmp_path / "notes.txt")
    tracker.close("FINISHED")
    assert warned == [
        f"recorder: there is no file '{tmp_path / 'nots.txt'}' to send",
        f"recorder: there is no folder '{tmp_path / 'notes.txt'}' to send",
        f"recorder: the tracker takes no artifact '{tmp_path / 'notes.txt'}': no place",
    ]


def test_an_artifact_is_sent_when_the_call_returns(begun, recorder, warned, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("first")
    read = []
    recorder.log_artifact = lambda path: read.append(path.read_text())
    tracker = begun(recorder, Limits(interval=3600.0))
    tracker.log({"loss": 1}, 1)
    tracker.log_artifact(path)
    path.write_text("second")
    tracker.log_artifact(path)
    path.unlink()
    assert read == ["first", "second"]
    tracker.close("FINISHED")
    assert warned == []


def test_nothing_is_left_on_the_disk_when_all_was_sent(begun, recorder, tmp_path):
    tracker = begun(recorder)
    tracker.log({"loss": 1}, 1)
    assert len(list((tmp_path / "model" / FOLDER).iterdir())) == 1, "it was there before the call returned"
    tracker.close("FINISHED")
    assert not list((tmp_path / "model").iterdir())


def test_however_many_wait_they_wait_on_the_disk(begun, batch_recorder, warned, waiting, tmp_path):
    batch_recorder.free.clear()
    tracker = begun(batch_recorder, Limits(values=10, interval=0.0))
    tracker.log({"loss": 0}, 0)
    assert batch_recorder.entered.wait(30)
    for step in range(1, 20_001):
        tracker.log({"loss": step}, step)
    assert len(list((tmp_path / "model" / FOLDER).iterdir())) == 2, "a file has a bounded size"
    batch_recorder.free.set()
    tracker.close("FINISHED")
    steps = [step for kind, batch in batch_recorder.calls if kind == "batch" for _, step in batch]
    assert steps == list(range(20_001))
    assert warned == []
    assert waiting() is None


class FullDisk:
    """Makes writing to outboxes fail, while `is_full`."""

    def __init__(self, monkeypatch):
        self.is_full = False
        write = segment.os.write

        def writes(file, content):
            if self.is_full:
                write(file, content[:10])  # a part may still find its place
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(file, content)

        monkeypatch.setattr(segment.os, "write", writes)


@pytest.fixture
def disk(monkeypatch):
    return FullDisk(monkeypatch)


def test_a_full_disk_is_said_once_and_all_is_sent(begun, recorder, warned, waiting, disk):
    tracker = begun(recorder)
    tracker.log({"loss": 1}, 1)
    disk.is_full = True
    for step in (2, 3):
        tracker.log({"loss": step}, step)
    disk.is_full = False
    tracker.log({"loss": 4}, 4)
    tracker.close("FINISHED")
    assert [call[2] for call in recorder.calls if call[0] == "log"] == [1, 2, 3, 4]
    assert recorder.calls[-1] == ("close", "FINISHED")
    assert warned == [
        "recorder: its outbox cannot be written ([Errno 28] No space left on device): "
        "what is not sent before the end of the training may be lost"
    ]
    assert waiting() is None


def test_what_a_full_disk_did_not_take_is_written_when_there_is_room(begun, recorder, warned, waiting, disk):
    recorder.failures = [Unreachable("no route")] * 1000
    tracker = begun(recorder, SLOW)
    disk.is_full = True
    for step in (1, 2, 3):
        tracker.log({"loss": step}, step)
    disk.is_full = False
    tracker.close("FINISHED")
    assert waiting() == "3 values (steps 1 to 3), the status FINISHED"
    assert warned[-1] == (
        "recorder: not sent yet: 3 values (steps 1 to 3), the status FINISHED; no route; later: accmt sync X"
    )


def test_a_full_disk_and_a_dead_tracker_lose_the_oldest_and_say_so(begun, recorder, warned, disk):
    recorder.failures = [Unreachable("no route")] * 1000
    tracker = begun(recorder, Limits(values=10, interval=0.0))
    disk.is_full = True
    for step in range(1, 31):
        tracker.log({"loss": step}, step)
    tracker.close("FINISHED")
    full = "[Errno 28] No space left on device"
    assert sorted(warned) == [
        "recorder does not answer, the training goes on without: no route",
        f"recorder: its outbox cannot be written ({full}): what is not sent before the end of the training may be lost",
        f"recorder: not sent: 30 values (steps 1 to 30), the status FINISHED; {full}",
    ]


def test_a_folder_that_cannot_be_written_is_no_error(begun, recorder, warned, tmp_path):
    (tmp_path / "model").write_text("in the way")
    tracker = begun(recorder)
    tracker.log({"loss": 1}, 1)
    tracker.close("FINISHED")
    assert recorder.calls == [("log", {"loss": 1.0}, 1), ("close", "FINISHED")]
    assert [text.split(" (")[0] for text in warned] == ["recorder: its outbox cannot be written"]


def test_what_waited_comes_first_and_what_is_logged_again_does_not(begun, recorder, outbox_for, warned, waiting):
    """A training is killed, and continued from a checkpoint at step 2."""
    recorder.failures = [Unreachable("no route")] * 1000
    tracker = begun(recorder, SLOW)
    for step in (1, 2):
        tracker.log({"loss": step}, step)
    state = tracker.state()["recorder"]
    tracker.log({"checkpoint": 1}, 2)
    tracker.log({"loss": 3}, 3)
    tracker.close("FAILED")
    recorder.failures = []
    resumption = Resumption(2, state["until"], state["until"] + 60_000)
    continued = begun(recorder, box=outbox_for("recorder", resumption=resumption))
    assert recorder.calls == [], "it may still turn out that it cannot be continued"
    continued.log({"loss": 30}, 3)
    continued.close("FINISHED")
    assert recorder.calls == [
        ("log", {"loss": 1.0}, 1),
        ("log", {"loss": 2.0, "checkpoint": 1.0}, 2),
        ("log", {"loss": 30.0}, 3),
        ("close", "FINISHED"),
    ]
    assert waiting() is None


@pytest.mark.parametrize("status", ["FAILED", "FINISHED"])
def test_a_training_that_could_not_be_continued_leaves_all_as_it_was(begun, recorder, outbox_for, waiting, status):
    """And one that had nothing more to do sends what waited."""
    recorder.failures = [Unreachable("no route")] * 1000
    tracker = begun(recorder, SLOW)
    for step in (1, 2, 3):
        tracker.log({"loss": step}, step)
    tracker.close("KILLED")
    recorder.failures = []
    begun(recorder, box=outbox_for("recorder", resumption=Resumption(2, 0, 1))).close(status)
    if status == "FAILED":
        assert recorder.calls == [("close", "FAILED")]
        assert waiting() == "3 values (steps 1 to 3), the status KILLED"
    else:
        assert recorder.calls == [("log", {"loss": 1.0}, 1), ("log", {"loss": 2.0}, 2), ("close", "FINISHED")]
        assert waiting() is None


def left_by_its_thread(tracker):
    """Wait for the call that was under way when the tracker was closed; otherwise it might succeed by now."""
    for thread in threading.enumerate():
        if thread.name == f"tracker {tracker.name}":
            thread.join(10)


def test_an_artifact_that_is_gone_when_it_is_its_turn(begun, recorder, outbox_for, warned, waiting, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    recorder.failures = [Unreachable("no route")] * 1000
    tracker = begun(recorder, HASTY)
    tracker.log({"loss": 1}, 1)
    tracker.log_artifact(tmp_path / "notes.txt")
    tracker.close("KILLED")
    left_by_its_thread(tracker)
    (tmp_path / "notes.txt").unlink()
    recorder.failures = []
    warned.clear()
    begun(recorder, box=outbox_for("recorder")).close("FINISHED")
    assert recorder.calls == [("log", {"loss": 1.0}, 1), ("close", "KILLED"), ("close", "FINISHED")]
    gone = f"'{tmp_path / 'notes.txt'}' is gone"
    assert warned == [f"recorder: {gone}: it cannot be sent any more", f"recorder: not sent: 1 artifact; {gone}"]
    assert waiting() is None


def test_what_is_no_number_is_left_out(begun, recorder, warned):
    tracker = begun(recorder)
    for step in (1, 2):
        tracker.log({"text": "good", "two": torch.ones(2), "loss": True, "none": None}, step)
    tracker.log({"text": "good"}, 3)
    tracker.log({"loss": 1}, 2.5)
    tracker.log({"loss": 2}, torch.tensor(4))
    tracker.close("FINISHED")
    assert [call for call in recorder.calls if call[0] == "log"] == [
        ("log", {"loss": 1.0}, 1),
        ("log", {"loss": 1.0}, 2),
        ("log", {"loss": 2.0}, 4),
    ]
    assert warned == [
        "recorder: 'text' is no number at step 1: it is not sent",
        "recorder: 'two' is no number at step 1: it is not sent",
        "recorder: 'none' is no number at step 1: it is not sent",
        "recorder: the step 2.5 is no whole number: its values are not sent",
    ]


def test_a_tracker_that_refuses_to_begin(warned, outbox, waiting):
    def refuses():
        raise PermissionError("not yours")

    outbox.run = "former"
    tracker = BackgroundTracker("recorder", refuses, warned.append, outbox, later="accmt sync X", limits=QUICK)
    with pytest.raises(PermissionError, match="not yours"):
        tracker.start(may_be_late=False)
    assert waiting() is None
    tracker.log({"loss": 1}, 1)
    assert tracker.state()["recorder"]["run"] == "former"
    tracker.close("FINISHED")
    assert warned == [
        "recorder: not sent yet: 1 value (step 1), the status FINISHED; PermissionError: not yours; later: accmt sync X"
    ]
    assert waiting() == "1 value (step 1), the status FINISHED"


def test_a_tracker_that_begins_late_is_told_everything(recorder, warned, outbox):
    may_begin = threading.Event()

    def begins_late():
        assert may_begin.wait(60)
        return recorder

    outbox.run = "former"
    tracker = BackgroundTracker("recorder", begins_late, warned.append, outbox, later="", limits=HASTY)
    tracker.start(may_be_late=True)
    assert warned == ["recorder does not answer yet: the training starts, and it is told later"]
    assert tracker.state()["recorder"]["run"] == "former"
    tracker.log({"loss": 1}, 1)
    may_begin.set()
    wait_for(lambda: recorder.calls)
    assert tracker.state()["recorder"]["run"] == "run 1"
    assert recorder.calls == [("log", {"loss": 1.0}, 1)]
    tracker.close("FINISHED")


def test_beginning_is_tried_again(recorder, warned, outbox):
    outcomes = [Unreachable("no route"), Unreachable("no route"), recorder]

    def begins():
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    tracker = BackgroundTracker("recorder", begins, warned.append, outbox, later="", limits=QUICK)
    tracker.start(may_be_late=False)
    tracker.log({"loss": 1}, 1)
    wait_for(lambda: recorder.calls)
    tracker.close("FINISHED")
    assert recorder.calls == [("log", {"loss": 1.0}, 1), ("close", "FINISHED")]
    assert warned == ["recorder does not answer, the training goes on without: no route"]


def test_times_never_go_back_and_a_checkpoint_is_between_two(begun, batch_recorder, monkeypatch, outbox, tmp_path):
    """Also when the clock does."""
    clock = [5_000.0]
    monkeypatch.setattr("accmt.tracking.backlog.time.time", lambda: clock[0])
    batch_recorder.free.clear()
    tracker = begun(batch_recorder)
    tracker.log({"loss": 1}, 1)
    clock[0] = 4_000.0
    tracker.log({"loss": 2}, 2)
    until = tracker.state()["recorder"]["until"]
    tracker.log({"loss": 3}, 3)
    times = [entry.time for entry, _ in Outbox(tmp_path / "model", outbox.recipient).read()]
    batch_recorder.free.set()
    assert times == [5_000_000, 5_000_000, 5_000_001]
    assert until == 5_000_000
    tracker.close("FINISHED")


def test_several_trackers_do_not_wait_for_one_another(begun, recorder, batch_recorder, outbox_for, warned, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    slow = begun(recorder, HASTY)
    fast = BackgroundTracker(
        "other", lambda: batch_recorder, warned.append, outbox_for("other"), later="", limits=QUICK
    )
    fast.start(may_be_late=False)
    recorder.free.clear()
    tracker = MultiTracker([slow, fast])
    for step in (1, 2):
        tracker.log({"loss": step}, step)
    assert recorder.entered.wait(30)
    wait_for(lambda: sum(len(batch) for _, batch in batch_recorder.calls) == 2)
    assert recorder.calls == []
    assert {name: state["run"] for name, state in tracker.state().items()} == {"recorder": "run 1", "other": None}
    recorder.free.set()
    tracker.log_artifact(tmp_path / "notes.txt")
    tracker.log_artifacts(tmp_path)
    wait_for(lambda: len(recorder.calls) == 4)
    tracker.close("FAILED")
    assert [call for call in batch_recorder.calls if call[0] != "batch"] == [
        ("file", "notes.txt"),
        ("folder", tmp_path.name),
        ("close", "FAILED"),
    ]
